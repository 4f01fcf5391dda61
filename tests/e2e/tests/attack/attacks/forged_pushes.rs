//! KV pushes that nobody has asked for, by somebody who speaks the protocol and knows what every worker tells everybody:
//! names, epochs, and that handoffs are counted. None of it may land.

use std::time::Duration;

use disagg_e2e::load::Random;
use disagg_proto::v1;
use prost::Message as _;

use crate::attacker::{Attack, Attackers, Count, FLOOR, ask};

pub(crate) const ATTACK: Attack =
    Attack { name: "forged pushes", floor: FLOOR, run: |attackers| Box::pin(run(attackers)) };

const AT_ONCE: usize = 16;

/// Of the model.
const LAYERS: u32 = 4;

/// A worker refuses a push, or closes the connection, within this time.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);

async fn run(attackers: Attackers) -> Result<String, String> {
    let target = std::sync::Arc::clone(&attackers.target);
    let next = std::sync::Arc::new(Count::default());
    let once = move || {
        let (target, next) = (std::sync::Arc::clone(&target), std::sync::Arc::clone(&next));
        async move {
            let mut random = Random::new(target.seed ^ u64::from(next.add()) << 20);
            let to = random.below(target.workers.len() as u64) as usize;
            let push = forged(&target.hellos, to, &mut random);
            let said = ask(&target.workers[to], &push, REFUSED_WITHIN).await;
            let answer = said.bytes.get(4..).and_then(|bytes| v1::PushResponse::decode(bytes).ok());
            match answer.and_then(|answer| answer.message) {
                Some(v1::push_response::Message::Done(_)) => "landed",
                Some(v1::push_response::Message::Refused(_)) => "refused",
                None if said.ended => "closed",
                None => "held",
            }
        }
    };
    let ends = attackers.repeat(AT_ONCE, once).await;
    let count = |what: &str| ends.iter().filter(|end| **end == what).count();
    let said = format!(
        "{} refused, {} closed, {} held, {} landed",
        count("refused"),
        count("closed"),
        count("held"),
        count("landed")
    );
    if count("landed") + count("held") > 0 || count("refused") == 0 {
        return Err(said);
    }
    Ok(said)
}

/// A push to the worker `to`, as from one of the others: a beginning, and a chunk of noise.
fn forged(hellos: &[v1::HelloResponse], to: usize, random: &mut Random) -> Vec<u8> {
    let epoch = |worker: &v1::HelloResponse| worker.worker.as_ref().map_or(0, |worker| worker.epoch);
    let from = &hellos[random.below(hellos.len() as u64) as usize];
    // By turns a number that may be right, and one that is not.
    let number = if random.below(2) == 0 { 1 + random.below(2000) } else { random.number() };
    #[allow(clippy::needless_update)] // whatever else belongs there, a forger does not know
    let begin = v1::PushBegin {
        handoff: Some(v1::HandoffRef { epoch: epoch(&hellos[to]), number }),
        prefill_worker: from.worker.clone(),
        kv_compat: hellos[to].kv_compat,
        ..v1::PushBegin::default()
    };
    let payload_bytes = hellos[to].kv_block_bytes as u32 / LAYERS;
    let chunk = v1::KvChunk {
        layer: random.below(u64::from(LAYERS)) as u32,
        first_block: random.below(4) as u32,
        block_count: 1,
        payload_bytes,
        ..v1::KvChunk::default()
    };
    let mut bytes = disagg_worker::transport::tcp::MAGIC.to_vec();
    for message in [v1::push_request::Message::Begin(begin), v1::push_request::Message::Chunk(chunk)] {
        let message = v1::PushRequest { message: Some(message) };
        bytes.extend((message.encoded_len() as u32).to_le_bytes());
        bytes.extend(message.encode_to_vec());
    }
    bytes.extend((0..payload_bytes / 8).flat_map(|_| random.number().to_le_bytes()));
    bytes
}
