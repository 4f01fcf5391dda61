//! Every path that a request can take, for greedy and for seeded requests, with one choice and with several: greedy
//! tokens are the reference's, and all paths agree to the last bit.

use disagg_engine::SampledToken;

use crate::golden::Case;
use crate::harness::{Ask, Choices, Worker, hand_over_all};

const BLOCK_SIZE: u32 = 16;
/// Holds the longest prompt with three choices, and far less than all prompts together.
const SCARCE_BLOCKS: u32 = 56;
const OTHERS: usize = 16;

/// What a run did with a case's prompts.
struct Run {
    path: String,
    outputs: Vec<Choices>,
}

/// The plainest path: each prompt alone, in one piece, in an engine of its own.
fn alone(case: &Case, ask: &Ask) -> Vec<Choices> {
    let prompts = case.golden.prompts.iter();
    prompts.map(|golden| worker(case, ask, 2048).generate_all(&[&golden.prompt]).remove(0)).collect()
}

fn worker(case: &Case, ask: &Ask, budget: u32) -> Worker {
    Worker::with_pool(case, ask.clone(), budget, BLOCK_SIZE, 8192 / BLOCK_SIZE)
}

/// All other paths.
fn paths(case: &Case, ask: &Ask) -> Vec<Run> {
    let prompts: Vec<&[u32]> = case.golden.prompts.iter().map(|golden| &*golden.prompt).collect();
    let mut runs = Vec::new();
    let mut add = |path: String, outputs: Vec<Choices>| runs.push(Run { path, outputs });
    for chunk in [16, 64, 512] {
        let mut local = worker(case, ask, chunk);
        let mut one_by_one =
            || prompts.iter().map(|prompt| local.generate_all(&[prompt]).remove(0)).collect();
        add(format!("local, chunks of {chunk}"), one_by_one());
        add(format!("prefix hit, chunks of {chunk}"), one_by_one());

        let (mut prefill, mut decode) = (worker(case, ask, chunk), worker(case, ask, 512));
        let mut remote = || hand_over_all(&mut prefill, &mut decode, &prompts, |_| {});
        add(format!("remote, chunks of {chunk}"), remote());
        add(format!("remote with a prefix hit, chunks of {chunk}"), remote());
    }

    let others: Vec<Vec<u32>> = (0..=OTHERS - prompts.len()).map(noise).collect();
    let crowd: Vec<&[u32]> = others.iter().map(Vec::as_slice).chain(prompts.iter().copied()).collect();
    assert_eq!(crowd.len(), OTHERS + 1);
    let outputs = worker(case, ask, 512).generate_all(&crowd);
    add(format!("beside {OTHERS} others"), outputs[others.len()..].to_vec());

    let mut scarce = Worker::with_pool(case, ask.clone(), 512, BLOCK_SIZE, SCARCE_BLOCKS);
    let outputs = scarce.generate_all(&crowd);
    assert!(scarce.preempted || ask.choices > 1, "{}: there was memory for all", case.name);
    add("after preemption".to_owned(), outputs[others.len()..].to_vec());
    runs
}

/// Some prompt that is none of a case's.
fn noise(number: usize) -> Vec<u32> {
    (0..5 + 23 * number).map(|at| (at * 37 + number * 11 + 1) as u32 % 500).collect()
}

/// Tokens and the log probabilities of the whole vocabulary, bit by bit.
fn bits(output: &[SampledToken]) -> Vec<(u32, Vec<(u32, u32)>)> {
    let all = |token: &SampledToken| token.top_logprobs.iter().map(|(id, p)| (*id, p.to_bits())).collect();
    output.iter().map(|token| (token.token, all(token))).collect()
}

fn assert_same(case: &Case, run: &Run, wanted: &[Choices]) {
    assert_eq!(run.outputs.len(), wanted.len());
    for ((golden, choices), wanted) in case.golden.prompts.iter().zip(&run.outputs).zip(wanted) {
        for (number, (output, wanted)) in choices.iter().zip(wanted).enumerate() {
            assert!(
                bits(output) == bits(wanted),
                "{}: {}: choice {number} of the prompt of {} tokens differs",
                case.name,
                run.path,
                golden.prompt.len()
            );
        }
    }
}

fn tokens(output: &[SampledToken]) -> Vec<u32> {
    output.iter().map(|token| token.token).collect()
}

/// One family on every path.
fn check(name: &'static str) {
    let case = Case::load(name);
    let greedy = alone(&case, &Ask::greedy());
    for (golden, choices) in case.golden.prompts.iter().zip(&greedy) {
        assert_eq!(tokens(&choices[0]), golden.output, "{name}: prompt of {} tokens", golden.prompt.len());
    }
    for (ask, single) in [(Ask::greedy(), greedy.clone()), (Ask::seeded(), alone(&case, &Ask::seeded()))] {
        for run in paths(&case, &ask) {
            assert_same(&case, &run, &single);
        }
        // What n choices say depends on nothing but their number, so the first says what the only one does.
        let several_ask = ask.clone().with_choices(3);
        let several = alone(&case, &several_ask);
        for (choices, single) in several.iter().zip(&single) {
            assert!(bits(&choices[0]) == bits(&single[0]), "{name}: the first of three choices");
            let alike = choices.iter().all(|choice| tokens(choice) == tokens(&choices[0]));
            assert_eq!(alike, ask.sampling.temperature == 0.0, "{name}: choices draw on their own");
        }
        for run in paths(&case, &several_ask) {
            assert_same(&case, &run, &several);
        }
    }
    let seeded = alone(&case, &Ask::seeded());
    assert!(
        greedy.iter().zip(&seeded).all(|(a, b)| tokens(&a[0]) != tokens(&b[0])),
        "{name}: nothing is drawn"
    );
}

#[test]
fn llama_is_the_same_on_every_path() {
    check("llama");
}

#[test]
fn llama3_rope_is_the_same_on_every_path() {
    check("llama3-rope");
}

#[test]
fn mistral_is_the_same_on_every_path() {
    check("mistral");
}

#[test]
fn qwen2_is_the_same_on_every_path() {
    check("qwen2");
}

#[test]
fn qwen3_is_the_same_on_every_path() {
    check("qwen3");
}

#[test]
fn a_window_in_every_layer_is_the_same_on_every_path() {
    check("mistral-window");
}

#[test]
fn a_window_in_some_layers_is_the_same_on_every_path() {
    check("qwen2-window");
}

#[test]
fn experts_are_the_same_on_every_path() {
    check("qwen3-moe");
}
