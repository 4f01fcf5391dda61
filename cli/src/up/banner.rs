//! What is printed when everything is ready: the URL, and a request for each placement, to be copied and pasted.

use std::net::SocketAddr;

/// The text, for standard output.
pub(super) fn ready(address: SocketAddr, model: &str, threshold: u32, has_prefill: bool) -> String {
    let url = url(address);
    let short = short_request(&url, model);
    let mut text = format!(
        "\nReady at {url} (OpenAI API, model \"{model}\").\n\n\
         A short prompt is prefilled where it is decoded, \"x-disagg-placement: local\":\n\n  {short}\n"
    );
    if has_prefill {
        let long = long_request(&url, model, threshold);
        text += "\nOne of more than ";
        text += &threshold.to_string();
        text += " tokens is prefilled by a prefill worker, \"x-disagg-placement: remote\":\n\n  ";
        text += &long;
        text += "\n";
    }
    text += "\nCtrl-C stops it.\n";
    text
}

/// The URL by which a client on this machine reaches `address`.
pub(super) fn url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    format!("http://{address}")
}

fn short_request(url: &str, model: &str) -> String {
    format!(
        "curl -si {url}/v1/completions -H 'Content-Type: application/json' -d '{{\"model\": {}, \"prompt\": \"Hello\", \
         \"max_tokens\": 16}}'",
        shell_single_quoted_json(model)
    )
}

/// A prompt of so many words that it has more than `threshold` tokens with any tokenizer: a word is at least one token.
/// It begins with the time, so that a second try is not found in the prefix cache and prefilled locally.
fn long_request(url: &str, model: &str, threshold: u32) -> String {
    let words = u64::from(threshold) + 16;
    format!(
        "curl -si {url}/v1/completions -H 'Content-Type: application/json' -d \"{{\\\"model\\\": {}, \\\"prompt\\\": \
         \\\"$(date +%s) $(yes go | head -n {words} | tr '\\n' ' ')\\\", \\\"max_tokens\\\": 16}}\"",
        shell_double_quoted_json(model)
    )
}

/// A JSON string, to stand between single quotes of a shell.
fn shell_single_quoted_json(text: &str) -> String {
    json(text).replace('\'', "'\\''")
}

/// A JSON string, to stand between double quotes of a shell.
fn shell_double_quoted_json(text: &str) -> String {
    json(text).chars().fold(String::new(), |mut quoted, c| {
        if matches!(c, '\\' | '"' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(c);
        quoted
    })
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The body that a shell would give to curl, by running the line with `printf` in its place.
    fn body(line: &str) -> serde_json::Value {
        let script = format!("curl() {{ for last; do :; done; printf %s \"$last\"; }}\n{line}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    #[test]
    fn requests_can_be_pasted_whatever_the_model_is_called() {
        for model in ["demo", "it's", "a\"b", "$(touch /tmp/x)", "back\\slash", "`x`"] {
            let short = body(&short_request("http://127.0.0.1:1", model));
            assert_eq!(short["model"], model);
            assert_eq!(short["prompt"], "Hello");
            let long = body(&long_request("http://127.0.0.1:1", model, 128));
            assert_eq!(long["model"], model);
            let words = long["prompt"].as_str().unwrap().split_whitespace().count();
            assert!(words > 128 && words < 256, "{words}");
            assert_eq!(long["max_tokens"], 16);
        }
    }

    #[test]
    fn the_long_request_is_only_shown_where_it_would_be_remote() {
        let address = "0.0.0.0:8181".parse().unwrap();
        let with = ready(address, "demo", 128, true);
        assert!(with.contains("http://127.0.0.1:8181/v1/completions") && with.contains("head -n 144"));
        assert!(!ready(address, "demo", 128, false).contains("head -n"));
    }

    #[test]
    fn addresses_are_those_of_a_client() {
        assert_eq!(url("[::]:1".parse().unwrap()), "http://[::1]:1");
        assert_eq!(url("10.0.0.1:1".parse().unwrap()), "http://10.0.0.1:1");
    }
}
