//! What the environment says about the hub: the variables of Hugging Face's own `huggingface_hub`, with its defaults.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use disagg_process::file;
use reqwest::Url;

use super::error::HubError;
use crate::https;

const ENDPOINT: &str = "https://huggingface.co";

/// Silence of the server after which a connection is given up.
const SILENCE: Duration = Duration::from_secs(30);

const RETRY_WAIT: Duration = Duration::from_millis(500);

/// A token file holds one line.
const TOKEN_BYTES_MAX: u64 = 4096;

/// A secret, and where it was found.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(super) secret: String,
    /// For messages: a variable or a file.
    pub(super) origin: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// How to reach the hub, and where to keep what it gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HubConfig {
    /// URL without a slash at its end. `HF_ENDPOINT`.
    pub endpoint: String,
    /// Folder with one folder for each model. `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or the file `HF_TOKEN_PATH`, or `token` in `HF_HOME`; none with `HF_HUB_DISABLE_IMPLICIT_TOKEN`.
    pub token: Option<Token>,
    /// Use what is in the cache, ask nobody. `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Silence of the server after which a connection is given up. `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds.
    pub silence: Duration,
    /// Wait before the second try of what failed; doubled each time, four times at most.
    pub retry_wait: Duration,
    /// `HF_HUB_DISABLE_PROGRESS_BARS`.
    pub no_bars: bool,
}

impl HubConfig {
    /// Reads the process's environment, and the token's file if there is one.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from(|name| std::env::var_os(name))
    }

    /// The same with any environment.
    pub fn from(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &'static str| -> Result<Option<String>, HubError> {
            let Some(value) = variable(name) else { return Ok(None) };
            let value = value.into_string().map_err(|_| HubError::variable(name, "is not UTF-8"))?;
            Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty()))
        };
        let switch = |name: &'static str| -> Result<bool, HubError> {
            let value = text(name)?.map(|value| value.to_ascii_uppercase());
            Ok(value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.as_str())))
        };

        let home = || {
            let below = |folder: PathBuf| folder.join("huggingface");
            path("HF_HOME")
                .or_else(|| path("XDG_CACHE_HOME").map(below))
                .or_else(|| path("HOME").map(|home| below(home.join(".cache"))))
                .ok_or_else(|| {
                    HubError::variable("HF_HOME", "is not set, and neither is HOME: name a folder")
                })
        };
        let cache = match path("HF_HUB_CACHE") {
            Some(cache) => cache,
            None => home()?.join("hub"),
        };
        let token = match text("HF_TOKEN")? {
            _ if switch("HF_HUB_DISABLE_IMPLICIT_TOKEN")? => None,
            Some(secret) => Some(Token { secret, origin: "HF_TOKEN".to_owned() }),
            None => match (path("HF_TOKEN_PATH"), home()) {
                // A file that is named must be there.
                (Some(file), _) => Some(read_token(&file)?),
                (None, Ok(home)) if home.join("token").exists() => Some(read_token(&home.join("token"))?),
                (None, _) => None,
            },
        };
        if token.as_ref().is_some_and(|token| !token.secret.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(HubError::variable(
                "HF_TOKEN",
                "is no token: it has other characters than letters, digits and signs",
            ));
        }
        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let offline = switch("HF_HUB_OFFLINE")?;
        match Url::parse(&endpoint) {
            Ok(url) if url.scheme() == "https" || https::is_loopback(&url) => {}
            Ok(url) if url.scheme() == "http" => {
                if let Some(token) = token.as_ref().filter(|_| !offline) {
                    return Err(HubError::TokenInTheClear { endpoint, origin: token.origin.clone() });
                }
            }
            _ => return Err(HubError::variable("HF_ENDPOINT", "must be a URL with http:// or https://")),
        }
        let silence = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            None => SILENCE,
            Some(seconds) => match seconds.parse() {
                Ok(seconds @ 1..=3600) => Duration::from_secs(seconds),
                _ => return Err(HubError::variable("HF_HUB_DOWNLOAD_TIMEOUT", "must be 1 to 3600 seconds")),
            },
        };
        Ok(Self {
            endpoint,
            cache,
            token,
            offline,
            silence,
            retry_wait: RETRY_WAIT,
            no_bars: switch("HF_HUB_DISABLE_PROGRESS_BARS")?,
        })
    }
}

fn read_token(path: &Path) -> Result<Token, HubError> {
    let text = file::read_text(path, TOKEN_BYTES_MAX)?;
    let secret = text.trim();
    if secret.is_empty() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "holds no token");
        return Err(HubError::Io { path: path.to_owned(), source });
    }
    Ok(Token { secret: secret.to_owned(), origin: path.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<HubConfig, String> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        HubConfig::from(|name| find(name).map(|(_, value)| value.into())).map_err(|error| error.to_string())
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/k")], "/k"),
            (&[("HF_HUB_CACHE", "/k")], "/k"),
            (&[("HOME", "/h"), ("HF_HOME", "")], "/h/.cache/huggingface/hub"),
        ] {
            assert_eq!(config(variables).expect("valid").cache, Path::new(cache), "{variables:?}");
        }
        assert!(config(&[]).unwrap_err().contains("HF_HOME: is not set"));
    }

    #[test]
    fn the_token_comes_from_the_variable_or_a_file_and_is_not_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let (home, file) = (folder.path().to_str().expect("text"), folder.path().join("token"));
        assert_eq!(config(&[("HF_HOME", home)]).expect("valid").token, None);
        std::fs::write(&file, "hf_from_file\n").expect("written");
        let token = |variables: &[(&str, &str)]| config(variables).expect("valid").token.expect("a token");
        let from_file = token(&[("HF_HOME", home)]);
        assert_eq!(
            (from_file.secret.as_str(), Path::new(&from_file.origin)),
            ("hf_from_file", file.as_path())
        );
        let path = file.to_str().expect("text");
        assert_eq!(token(&[("HF_HOME", "/f"), ("HF_TOKEN_PATH", path)]), from_file);
        let named = token(&[("HF_HOME", home), ("HF_TOKEN", " hf_x ")]);
        assert_eq!((named.secret.as_str(), named.origin.as_str()), ("hf_x", "HF_TOKEN"));
        assert!(!format!("{named:?}").contains("hf_x"));
        assert!(
            config(&[("HF_HOME", "/f"), ("HF_TOKEN_PATH", "/nonexistent/t")])
                .unwrap_err()
                .contains("/nonexistent/t")
        );
        assert!(
            config(&[("HF_HOME", "/f"), ("HF_TOKEN", "a\nb")]).unwrap_err().contains("HF_TOKEN: is no token")
        );
    }

    #[test]
    fn other_variables_are_read_and_checked() {
        let all = config(&[
            ("HF_HOME", "/f"),
            ("HF_ENDPOINT", "http://mirror:1/"),
            ("HF_HUB_OFFLINE", "true"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "5"),
            ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ])
        .expect("valid");
        assert_eq!((all.endpoint.as_str(), all.offline, all.no_bars), ("http://mirror:1", true, true));
        assert_eq!(all.silence, Duration::from_secs(5));
        let plain = config(&[("HF_HOME", "/f"), ("HF_HUB_OFFLINE", "0")]).expect("valid");
        assert_eq!((plain.endpoint.as_str(), plain.offline, plain.no_bars), (ENDPOINT, false, false));
        for (name, value) in [
            ("HF_ENDPOINT", "mirror:1"),
            ("HF_ENDPOINT", "ftp://mirror"),
            ("HF_ENDPOINT", "http://"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
        ] {
            assert!(config(&[("HF_HOME", "/f"), (name, value)]).unwrap_err().contains(name), "{value}");
        }
    }

    #[test]
    fn a_token_goes_over_networks_only_by_https() {
        let token = |endpoint, more: &[(&str, &str)]| {
            let token = [("HF_HOME", "/f"), ("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", endpoint)];
            config(&[&token, more].concat()).map(|config| config.token.is_some())
        };
        for plain in
            ["http://mirror:1", "HTTP://mirror", "http://127.0.0.1.example.org", "http://10.0.0.1/hub"]
        {
            let error = token(plain, &[]).unwrap_err();
            assert!(error.starts_with(&format!("HF_ENDPOINT: {plain} ")), "{error}");
            assert!(error.contains("HF_TOKEN") && !error.contains("hf_secret"), "{error}");
            // Nothing is sent.
            assert_eq!(token(plain, &[("HF_HUB_OFFLINE", "1")]), Ok(true));
            assert_eq!(token(plain, &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), Ok(false));
            assert_eq!(config(&[("HF_HOME", "/f"), ("HF_ENDPOINT", plain)]).expect("valid").token, None);
        }
        for safe in ["https://mirror", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            assert_eq!(token(safe, &[]), Ok(true), "{safe}");
        }
    }
}
