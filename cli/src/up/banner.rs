//! What is printed when everything is ready: the URL, and a request for each placement, to be copied and pasted.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::router_client::ADMIN_URL;

/// What the printed requests ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Example {
    /// Of the demo model: questions that it answers, as chats.
    Questions,
    /// Of any other model: text to be continued, since not every model has a chat template.
    Continuations,
}

/// The text, for standard output.
pub(super) fn ready(
    address: SocketAddr,
    admin: SocketAddr,
    model: &str,
    example: Example,
    threshold: u32,
    has_prefill: bool,
) -> String {
    let url = url(address);
    let short = short_request(&url, model, example);
    let mut text = format!(
        "\nReady at {url} (OpenAI API, model \"{model}\").\n\n\
         A short prompt is prefilled where it is decoded, \"x-disagg-placement: local\":\n\n  {short}\n"
    );
    if has_prefill {
        let long = long_request(&url, model, example, threshold);
        text += "\nOne of more than ";
        text += &threshold.to_string();
        text += " tokens is prefilled by a prefill worker, \"x-disagg-placement: remote\":\n\n  ";
        text += &long;
        text += "\n";
    }
    let admin_url = self::url(admin);
    let _ = writeln!(
        text,
        "\n{} shows workers and settings; {admin_url}/metrics is for Prometheus.",
        status(admin)
    );
    text += "\nCtrl-C stops it.\n";
    text
}

/// The command that asks this router.
fn status(admin: SocketAddr) -> String {
    match url(admin) {
        usual if usual == ADMIN_URL => "disagg status".to_owned(),
        other => format!("disagg status --admin {other}"),
    }
}

/// What is said when the API is open to other machines.
pub(super) fn open_to_others(address: SocketAddr) -> Option<String> {
    (!address.ip().to_canonical().is_loopback()).then(|| {
        format!(
            "warning: --host {}: whoever reaches this machine on port {} can use the model, without a key and without \
             TLS; a firewall or a proxy in front has to say who may",
            address.ip(),
            address.port()
        )
    })
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

fn short_request(url: &str, model: &str, example: Example) -> String {
    let model = shell_single_quoted_json(model);
    let (path, body) = match example {
        Example::Questions => (
            "chat/completions",
            format!(
                "{{\"model\": {model}, \"messages\": [{{\"role\": \"user\", \"content\": \"What is disagg?\"}}]}}"
            ),
        ),
        Example::Continuations => {
            ("completions", format!("{{\"model\": {model}, \"prompt\": \"Hello\", \"max_tokens\": 16}}"))
        }
    };
    format!("curl -si {url}/v1/{path} -H 'Content-Type: application/json' -d '{body}'")
}

/// A prompt with enough words that it has more than `threshold` tokens with any tokenizer: a word is at least one token.
/// It begins with the time, so that a second try is not found in the prefix cache and prefilled locally.
fn long_request(url: &str, model: &str, example: Example, threshold: u32) -> String {
    let model = shell_double_quoted_json(model);
    let words = u64::from(threshold) + 16;
    let text = format!("$(date +%s) $(yes go | head -n {words} | tr '\\n' ' ')");
    let (path, body) = match example {
        Example::Questions => (
            "chat/completions",
            format!(
                "{{\\\"model\\\": {model}, \\\"messages\\\": [{{\\\"role\\\": \\\"user\\\", \\\"content\\\": \\\"{text} \
                 What is a handoff?\\\"}}]}}"
            ),
        ),
        Example::Continuations => (
            "completions",
            format!("{{\\\"model\\\": {model}, \\\"prompt\\\": \\\"{text}\\\", \\\"max_tokens\\\": 16}}"),
        ),
    };
    format!("curl -si {url}/v1/{path} -H 'Content-Type: application/json' -d \"{body}\"")
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

    const URL: &str = "http://127.0.0.1:1";

    #[test]
    fn requests_can_be_pasted_whatever_the_model_is_called() {
        for model in ["demo", "it's", "a\"b", "$(touch /tmp/x)", "back\\slash", "`x`"] {
            let short = body(&short_request(URL, model, Example::Continuations));
            assert_eq!(short["model"], model);
            assert_eq!(short["prompt"], "Hello");
            let long = body(&long_request(URL, model, Example::Continuations, 128));
            assert_eq!(long["model"], model);
            let words = long["prompt"].as_str().unwrap().split_whitespace().count();
            assert!(words > 128 && words < 256, "{words}");
            assert_eq!(long["max_tokens"], 16);

            let short = body(&short_request(URL, model, Example::Questions));
            let long = body(&long_request(URL, model, Example::Questions, 128));
            let asked = |request: &serde_json::Value| {
                assert_eq!(request["model"], model);
                assert_eq!(request["messages"][0]["role"], "user");
                request["messages"][0]["content"].as_str().unwrap().to_owned()
            };
            assert_eq!(asked(&short), "What is disagg?");
            let long = asked(&long);
            assert!(long.split_whitespace().count() > 128 && long.ends_with(" What is a handoff?"), "{long}");
        }
    }

    #[test]
    fn the_long_request_is_only_shown_where_it_would_be_remote() {
        let address = "0.0.0.0:8181".parse().unwrap();
        let admin = "127.0.0.1:8182".parse().unwrap();
        let ready = |has_prefill| ready(address, admin, "demo", Example::Questions, 128, has_prefill);
        let with = ready(true);
        assert!(with.contains("http://127.0.0.1:8181/v1/chat/completions") && with.contains("head -n 144"));
        assert!(!ready(false).contains("head -n"));
    }

    #[test]
    fn the_command_for_its_status_is_one_that_works() {
        assert_eq!(status("127.0.0.1:8182".parse().unwrap()), "disagg status");
        let other = "disagg status --admin http://127.0.0.1:9001";
        assert_eq!(status("127.0.0.1:9001".parse().unwrap()), other);
    }

    #[test]
    fn an_open_address_is_warned_about() {
        for open in ["0.0.0.0:8181", "[::]:8181", "192.168.0.7:8181"] {
            let warning = open_to_others(open.parse().unwrap()).unwrap_or_else(|| panic!("{open}"));
            assert!(warning.starts_with("warning: --host") && warning.contains("port 8181"), "{warning}");
        }
        for closed in ["127.0.0.1:8181", "[::1]:8181"] {
            assert_eq!(open_to_others(closed.parse().unwrap()), None, "{closed}");
        }
    }

    #[test]
    fn addresses_are_those_of_a_client() {
        assert_eq!(url("[::]:1".parse().unwrap()), "http://[::1]:1");
        assert_eq!(url("10.0.0.1:1".parse().unwrap()), "http://10.0.0.1:1");
    }
}
