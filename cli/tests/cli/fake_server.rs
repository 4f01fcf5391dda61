//! A server in OpenAI's shape with known delays and known faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// What it does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behaviour {
    /// Streamed request number `k` (from 0, beyond one token) has its first token after `first + k * step`.
    pub(crate) first: Duration,
    pub(crate) step: Duration,
    /// Between two tokens.
    pub(crate) gap: Duration,
    /// Refuses `ignore_eos`, `min_tokens` and `stream_options` by name, and sends no usage in streams.
    pub(crate) plain: bool,
    /// Every third streamed request is answered with 429, and the one after it breaks off.
    pub(crate) faulty: bool,
}

/// A connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Listens on a port of its own; gives its URL. Ends with the test's runtime.
pub(crate) async fn start(behaviour: Behaviour) -> String {
    listen(behaviour, None).await
}

/// The same over HTTPS, with a certificate of its own; gives the URL and the certificate as PEM.
pub(crate) async fn start_tls(behaviour: Behaviour) -> (String, String) {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    (listen(behaviour, Some(TlsAcceptor::from(Arc::new(config)))).await, own.cert.pem())
}

async fn listen(behaviour: Behaviour, tls: Option<TlsAcceptor>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (count, tls) = (Arc::clone(&count), tls.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                // A client that goes away, or that does not like the certificate, is no failure of the server.
                let stream: Box<dyn Stream> = match tls {
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                    None => Box::new(stream),
                };
                let mut stream = BufReader::new(stream);
                serve(&mut stream, behaviour, &count).await.unwrap_or_default();
                // A TLS stream says goodbye, or its end reads as one that was cut.
                stream.shutdown().await.unwrap_or_default();
            });
        }
    });
    url
}

/// One request a connection.
async fn serve(
    stream: &mut BufReader<Box<dyn Stream>>,
    behaviour: Behaviour,
    count: &AtomicU64,
) -> std::io::Result<()> {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if head.starts_with("GET /v1/models ") {
        return answer(stream, 200, &json!({ "object": "list", "data": [{ "id": "fake" }] })).await;
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    if behaviour.plain
        && let Some(name) =
            ["ignore_eos", "min_tokens", "stream_options"].iter().find(|name| body.get(name).is_some())
    {
        let error = json!({ "error": { "message": format!("Unknown parameter: '{name}'.") } });
        return answer(stream, 400, &error).await;
    }
    let prompt = body["prompt"].as_str().or_else(|| body["messages"][0]["content"].as_str()).unwrap();
    // Its tokenizer takes longer words apart; every prompt has five tokens more.
    let prompt_tokens = 5 + prompt.split(' ').map(|word| 1 + word.len() / 4).sum::<usize>();
    let tokens = body["max_tokens"].as_u64().unwrap();
    let usage = json!({ "prompt_tokens": prompt_tokens, "completion_tokens": tokens });
    if body["stream"] != true {
        return answer(stream, 200, &json!({ "choices": [], "usage": usage })).await;
    }
    let number = if tokens > 1 { count.fetch_add(1, Ordering::Relaxed) } else { 0 };
    if behaviour.faulty && tokens > 1 && number % 3 == 2 {
        return answer(stream, 429, &json!({ "error": { "message": "too many" } })).await;
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let chat = body.get("messages").is_some();
    if chat {
        // The role comes at once, and is no token.
        event(stream, &json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] })).await?;
    }
    if tokens > 1 {
        sleep(behaviour.first + behaviour.step * u32::try_from(number).unwrap()).await;
    }
    for token in 0..tokens {
        if token > 0 {
            sleep(behaviour.gap).await;
        }
        if behaviour.faulty && token > 0 && number % 3 == 0 {
            return Ok(());
        }
        let finish = (token + 1 == tokens).then_some("length");
        let choice = if chat {
            json!({ "delta": { "content": "word " }, "finish_reason": finish })
        } else {
            json!({ "text": "word ", "finish_reason": finish })
        };
        event(stream, &json!({ "choices": [choice] })).await?;
    }
    if !behaviour.plain {
        event(stream, &json!({ "choices": [], "usage": usage })).await?;
    }
    stream.write_all(b"data: [DONE]\n\n").await
}

async fn event(stream: &mut BufReader<Box<dyn Stream>>, data: &Value) -> std::io::Result<()> {
    stream.write_all(format!("data: {data}\n\n").as_bytes()).await
}

async fn answer(stream: &mut BufReader<Box<dyn Stream>>, status: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all((head + &body).as_bytes()).await
}
