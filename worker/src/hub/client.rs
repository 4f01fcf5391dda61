//! The hub's HTTP: what a revision holds, and the bytes of a file.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, LOCATION, RANGE, RETRY_AFTER, USER_AGENT};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::config::HubConfig;
use super::error::HubError;
use super::id::{HubModel, is_commit};
use crate::https::{self, causes};

const CONNECT: Duration = Duration::from_secs(10);
/// Of an answer that is not a file.
const ANSWER: Duration = Duration::from_mins(1);
/// The list of a model's files has some hundred bytes for each.
const LIST_BYTES_MAX: usize = 16 << 20;
const REDIRECTS_MAX: usize = 5;
/// Longest `Retry-After` that is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// Speaks to one hub.
pub(super) struct Client {
    http: reqwest::Client,
    endpoint: String,
    authorization: Option<String>,
    /// For messages: which token is sent.
    token: String,
}

/// Why a request failed.
pub(super) enum Failure {
    /// Another try may succeed, after so long if the hub says so.
    Passing { cause: String, wait: Option<Duration> },
    /// None will.
    Final(HubError),
}

impl Failure {
    pub(super) fn passing(cause: impl Into<String>) -> Self {
        Self::Passing { cause: cause.into(), wait: None }
    }
}

/// A file of a revision.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// Of its content; what its blob is called in the cache.
    pub(super) hash: ContentHash,
}

/// What the hub knows a file's content by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ContentHash {
    /// Of the bytes: large files.
    Sha256(String),
    /// SHA-1 as git makes it: small files.
    Git(String),
}

impl ContentHash {
    pub(super) fn as_str(&self) -> &str {
        let (Self::Sha256(hex) | Self::Git(hex)) = self;
        hex
    }
}

/// What a revision is.
#[derive(Clone, Debug)]
pub(super) struct Revision {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, RemoteFile>,
}

/// Answer of `/api/models/ORG/NAME/revision/REVISION?blobs=true`.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Client {
    pub(super) fn new(config: &HubConfig) -> Result<Self, HubError> {
        let http = https::client_builder(&config.endpoint);
        // What may be sent on this machine must not go through a proxy, which is another.
        let here = Url::parse(&config.endpoint).is_ok_and(|endpoint| https::is_loopback(&endpoint));
        let http = if here { http.no_proxy() } else { http };
        let http = http
            .connect_timeout(CONNECT)
            // Between two reads: a large file may take hours.
            .read_timeout(config.silence)
            // Ours: the first answer has the file's identity, and the token goes to the hub only.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| HubError::Connection { what: config.endpoint.clone(), cause: causes(&error) })?;
        Ok(Self {
            http,
            endpoint: config.endpoint.clone(),
            authorization: config.token.as_ref().map(|token| format!("Bearer {}", token.secret)),
            token: config.token.as_ref().map_or_else(
                || "none is set now".to_owned(),
                |token| format!("the one of {} was sent", token.origin),
            ),
        })
    }

    /// The commit of a revision, and its files.
    pub(super) async fn revision(&self, model: &HubModel) -> Result<Revision, Failure> {
        let revision = model.revision().replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, model.id());
        let fetch = async {
            let (response, _) = self.get(model, &url, None).await?;
            bounded(response, LIST_BYTES_MAX).await
        };
        let body = tokio::time::timeout(ANSWER, fetch).await;
        let body = body.map_err(|_| Failure::passing(format!("no answer in {} s", ANSWER.as_secs())))??;
        let bad = |message: String| Failure::Final(HubError::Protocol { url: url.clone(), message });
        let info: Info = serde_json::from_slice(&body)
            .map_err(|error| bad(format!("the answer is no list of a model's files: {error}")))?;
        if !is_commit(&info.sha) {
            return Err(bad(format!("{:?} is no commit", info.sha)));
        }
        let mut files = BTreeMap::new();
        for Sibling { name, size, blob_id, lfs } in info.siblings {
            let known = match (lfs, size, blob_id) {
                (Some(Lfs { sha256, size }), ..) => Some((size, ContentHash::Sha256(sha256))),
                (None, Some(size), Some(id)) => Some((size, ContentHash::Git(id))),
                _ => None,
            };
            let Some((size, hash)) = known else { return Err(bad(format!("{name} has no size or no hash"))) };
            // A part of a path.
            let digits = if matches!(hash, ContentHash::Sha256(_)) { 64 } else { 40 };
            if hash.as_str().len() != digits || !hash.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(bad(format!("{name} has the hash {:?}", hash.as_str())));
            }
            files.insert(name.clone(), RemoteFile { name, size, hash });
        }
        Ok(Revision { commit: info.sha, files })
    }

    /// A file from `offset` on. The answer's status is 200 (the whole file), 206 or 416.
    pub(super) async fn file(
        &self,
        model: &HubModel,
        commit: &str,
        file: &RemoteFile,
        offset: u64,
    ) -> Result<Response, Failure> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, model.id(), file.name);
        let (response, headers) = self.get(model, &url, (offset > 0).then_some(offset)).await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let damaged = |message: String| {
            let (model, file) = (model.clone(), file.name.clone());
            Failure::Final(HubError::Damaged { model, file, message })
        };
        if let Some(other) = header("x-repo-commit").filter(|other| *other != commit) {
            return Err(damaged(format!("the hub sends it of commit {other}, not of {commit}")));
        }
        // `etag` is that of whoever serves the bytes; only this one is the hub's word on a file that others serve.
        let linked = header("x-linked-etag").map(|etag| etag.trim_matches('"'));
        if let Some(other) = linked.filter(|other| *other != file.hash.as_str()) {
            return Err(damaged(format!("the hub sends {other}, not {}", file.hash.as_str())));
        }
        Ok(response)
    }

    /// Follows redirects; gives the last answer, and the headers of the last that is the hub's own.
    async fn get(
        &self,
        model: &HubModel,
        url: &str,
        offset: Option<u64>,
    ) -> Result<(Response, HeaderMap), Failure> {
        let protocol = |message: &str| {
            Failure::Final(HubError::Protocol { url: url.to_owned(), message: message.to_owned() })
        };
        let hub = Url::parse(&self.endpoint).map_err(|_| protocol("no URL"))?;
        let mut next = Url::parse(url).map_err(|_| protocol("no URL"))?;
        let mut headers = HeaderMap::new();
        for _ in 0..=REDIRECTS_MAX {
            let is_hub = next.origin() == hub.origin();
            // Compressed, sizes and offsets would be others.
            let mut request = self.http.get(next.clone()).header(ACCEPT_ENCODING, "identity");
            request = request.header(USER_AGENT, concat!("disagg/", env!("CARGO_PKG_VERSION")));
            // Whoever the hub sends us to must not have the token.
            if let Some(authorization) = self.authorization.as_ref().filter(|_| is_hub) {
                request = request.header(AUTHORIZATION, authorization);
            }
            if let Some(offset) = offset {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            let response = request.send().await.map_err(|error| Failure::passing(causes(&error)))?;
            if is_hub {
                headers.extend(response.headers().clone());
            }
            if !response.status().is_redirection() {
                return self.check(model, url, response).map(|response| (response, headers));
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let target = location.and_then(|location| next.join(location).ok());
            next = target.ok_or_else(|| protocol("a redirect to nowhere"))?;
        }
        Err(protocol("too many redirects"))
    }

    /// Makes an error of an answer that is one.
    fn check(&self, model: &HubModel, url: &str, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            let wait = header(RETRY_AFTER.as_str()).and_then(|seconds| seconds.parse().ok());
            let wait = wait.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
            return Err(Failure::Passing { cause: format!("{url} answers {status}"), wait });
        }
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        let (model, endpoint, token) = (model.clone(), self.endpoint.clone(), self.token.clone());
        let message = message.unwrap_or_else(|| status.to_string());
        let denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        Err(Failure::Final(match (code.as_deref(), status) {
            (Some("GatedRepo"), _) => HubError::Gated { model, endpoint, token, message },
            (Some("RevisionNotFound"), _) => HubError::NoRevision { model, endpoint },
            (Some("EntryNotFound"), _) => HubError::Protocol {
                url: url.to_owned(),
                message: "the file is listed, but not there".to_owned(),
            },
            // The hub does not tell strangers which private models there are.
            (Some("RepoNotFound"), _) | (None, StatusCode::NOT_FOUND) => {
                HubError::NotFound { model, endpoint, token }
            }
            _ if denied => HubError::Refused { model, endpoint, status: status.as_u16(), token, message },
            _ => HubError::Protocol { url: url.to_owned(), message: format!("answers {status}: {message}") },
        }))
    }
}

async fn bounded(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::passing(causes(&error)))? {
        body.extend_from_slice(&chunk);
        if body.len() > limit {
            let (url, message) =
                (response.url().to_string(), format!("the answer is over {limit} bytes long"));
            return Err(Failure::Final(HubError::Protocol { url, message }));
        }
    }
    Ok(body)
}
