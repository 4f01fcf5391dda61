//! One step: schedule, execute, postprocess.

use crate::backend::{Backend, BackendError, Batch, SampleRow, SampledToken, TokenInput};
use crate::engine::{Engine, EngineEvent};
use crate::kv::{KvPush, KvTransport};
use crate::request::FinishReason;
use crate::scheduler::Row;
use crate::sequence::{Kind, Sequence, SequenceKey, State};
use crate::sequences::impossible;

impl<B: Backend> Engine<B> {
    /// Computes one step: schedule, execute, postprocess. Does nothing when there is no work. On an error every
    /// sequence of the step has ended with [`FinishReason::Error`].
    ///
    /// With a backend that can have two steps under way, this launches a step before it collects the one before, so
    /// that what a step draws comes out one call later.
    pub fn step(&mut self, transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        self.end_lost();
        let under_way = !self.launched.is_empty();
        let rows = self.scheduler.schedule(&mut self.sequences, &mut self.pool, under_way);
        let nothing_new = rows.is_empty();
        self.stalled = nothing_new && !under_way;
        if !nothing_new {
            self.launch(rows, transport)?;
        }
        // A batch refers to tokens of the step before it and no further back: deeper pipelines have no use here.
        let depth = self.backend.pipeline_depth().clamp(1, 2);
        if self.launched.len() >= depth || (nothing_new && under_way) {
            self.collect(transport)?;
        }
        Ok(())
    }

    /// The rows that can be computed, which is all of them. One without its token would compute with that of another
    /// sequence, and one without a block would write into another's: should there be such a row, its sequence ends with
    /// an error and the others go on.
    fn without_broken(&mut self, rows: Vec<Row>) -> Vec<Row> {
        let (sound, broken): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| {
            self.sequences.held(row.key).is_some_and(|sequence| {
                let end = row.start + row.len;
                end <= sequence.num_tokens() && end <= sequence.blocks.len() * self.block_size
            })
        });
        for row in broken {
            impossible(|| format!("{row:?} is planned without its tokens or blocks"));
            self.finish(row.key, FinishReason::Error);
        }
        sound
    }

    /// Builds the batch and starts it.
    pub(super) fn launch(
        &mut self,
        rows: Vec<Row>,
        transport: &mut dyn KvTransport,
    ) -> Result<(), BackendError> {
        let rows = self.without_broken(rows);
        if rows.is_empty() {
            return Ok(());
        }
        let pushes: Vec<KvPush> = rows.iter().filter_map(|row| self.take_push(row)).collect();
        let launched = self.launch_batch(&rows, &pushes, transport);
        if launched.is_err() {
            self.fail(&rows);
            return launched;
        }
        let mut samples = 0;
        for row in &rows {
            let Some(sequence) = self.sequences.held_mut(row.key) else { continue };
            sequence.num_computed_tokens += row.len;
            sequence.in_flight += 1;
            if row.sample {
                sequence.pending = Some(samples);
                samples += 1;
            }
        }
        self.launched.push_back(rows);
        Ok(())
    }

    fn launch_batch(
        &mut self,
        rows: &[Row],
        pushes: &[KvPush],
        transport: &mut dyn KvTransport,
    ) -> Result<(), BackendError> {
        let tokens = rows.iter().map(|row| row.len).sum();
        let mut input_ids = Vec::with_capacity(tokens);
        let mut positions = Vec::with_capacity(tokens);
        let mut slot_mapping = Vec::with_capacity(tokens);
        let mut cu_seqlens = Vec::with_capacity(rows.len() + 1);
        let mut block_tables = Vec::with_capacity(rows.len());
        let mut samples = Vec::new();
        cu_seqlens.push(0);
        for (index, row) in rows.iter().enumerate() {
            // `without_broken` has seen to it that there is one, with all its tokens and blocks.
            let Some(sequence) = self.sequences.held(row.key) else { continue };
            let end = row.start + row.len;
            input_ids.extend(inputs(sequence, row.start, end));
            for position in row.start..end {
                let block = sequence.blocks[position / self.block_size];
                debug_assert!(self.pool.is_writable(block), "{:?} would write to shared {block:?}", row.key);
                positions.push(position as u32);
                slot_mapping.push(block.0 * self.block_size as u32 + (position % self.block_size) as u32);
            }
            cu_seqlens.push(input_ids.len() as u32);
            block_tables.push(&sequence.blocks[..end.div_ceil(self.block_size)]);
            if row.sample {
                samples.push(sample_row(index as u32, sequence));
            }
        }
        let batch = Batch {
            input_ids: &input_ids,
            positions: &positions,
            cu_seqlens: &cu_seqlens,
            slot_mapping: &slot_mapping,
            block_tables: &block_tables,
            samples: &samples,
            pushes,
        };
        self.backend.launch(&batch, transport)
    }

    /// The blocks that a row completes for another worker. With the first row also those that were cached here.
    fn take_push(&mut self, row: &Row) -> Option<KvPush> {
        let sequence = self.sequences.held_mut(row.key)?;
        let Kind::Prefill(push) = &mut sequence.kind else { return None };
        let end = row.start + row.len;
        // Nothing follows the prompt: its partial last block is complete with it.
        let complete =
            if end == sequence.request.prompt.len() { sequence.blocks.len() } else { end / self.block_size };
        let blocks = sequence.blocks.get(push.next_block..complete).filter(|blocks| !blocks.is_empty())?;
        let first = (push.next_block - push.first_block) as u32;
        push.next_block = complete;
        Some(KvPush { handoff: push.handoff, first, blocks: blocks.to_vec() })
    }

    /// Waits for the oldest launched step and draws the consequences.
    fn collect(&mut self, transport: &mut dyn KvTransport) -> Result<(), BackendError> {
        let Some(rows) = self.launched.pop_front() else { return Ok(()) };
        let collected = self.backend.collect(transport);
        for row in &rows {
            if let Some(sequence) = self.sequences.held_mut(row.key) {
                sequence.in_flight -= 1;
            }
        }
        match collected {
            Err(error) => {
                self.fail(&rows);
                Err(error)
            }
            Ok(drawn) => {
                let mut drawn = drawn.into_iter();
                for row in rows {
                    let tokens = row.sample.then(|| drawn.next().unwrap_or_default());
                    self.settle(&row, tokens);
                    // It is gone if it has just ended.
                    if let Some(sequence) = self.sequences.get_mut(row.key) {
                        self.scheduler.pause_if_behind(sequence);
                    }
                }
                Ok(())
            }
        }
    }

    /// Ends every sequence of a step that failed.
    fn fail(&mut self, rows: &[Row]) {
        for row in rows {
            let Some(sequence) = self.sequences.held(row.key) else { continue };
            let ended = sequence.state() == State::Finished;
            if ended { self.drop_if_unused(row.key) } else { self.finish(row.key, FinishReason::Error) }
        }
    }

    /// Takes over what a collected step has computed for one sequence. `drawn` if it drew tokens.
    fn settle(&mut self, row: &Row, drawn: Option<Vec<SampledToken>>) {
        let Some(sequence) = self.sequences.held_mut(row.key) else { return };
        if sequence.state() == State::Finished {
            // It ended while this step was under way; what was computed ahead is of no use.
            self.drop_if_unused(row.key);
            return;
        }
        let Some(drawn) = drawn else {
            if let Kind::Prefill(push) = &sequence.kind {
                let (handoff, computed_tokens) = (push.handoff, (row.start + row.len) as u32);
                self.events.push(EngineEvent::PrefillProgress { handoff, computed_tokens });
            }
            return;
        };
        if sequence.in_flight == 0 {
            // Otherwise the pending token is that of the step launched after this one.
            sequence.pending = None;
        }
        if drawn.len() < sequence.choices.len() {
            self.finish(row.key, FinishReason::Error);
            return;
        }
        // Not earlier. A number that is none goes from a token's KV into the logits of every later one, so that a draw
        // vouches for all KV before it; without one, others would find blocks that no prompt can be answered from.
        sequence.publish(row.start + row.len, &mut self.pool);
        match &sequence.kind {
            Kind::Generate => self.accept(row.key, drawn),
            Kind::Prefill(push) => {
                self.events.push(EngineEvent::PrefillDone { handoff: push.handoff, first_tokens: drawn });
                sequence.set_state(State::Finished);
                self.scheduler.remove(row.key);
            }
        }
    }

    /// Appends a token to each choice the sequence stands for. After the first token every choice goes its own way:
    /// the first keeps this sequence, the others share the prompt's full blocks and compute the rest of it again.
    pub(super) fn accept(&mut self, key: SequenceKey, drawn: Vec<SampledToken>) {
        let Some(sequence) = self.sequences.held_mut(key) else { return };
        let choices = std::mem::replace(&mut sequence.choices, key.choice..key.choice + 1);
        let shared = sequence.prompt_len() / self.block_size;
        let mut forks = Vec::new();
        for (choice, sampled) in choices.zip(drawn) {
            let token = sampled.token;
            self.events.push(EngineEvent::Tokens { sequence: key.request, choice, tokens: vec![sampled] });
            if choice == key.choice {
                sequence.tokens.push(token);
            } else {
                let blocks = sequence.blocks[..shared].to_vec();
                self.pool.hold(&blocks);
                forks.push(sequence.fork(choice, token, blocks));
            }
        }
        let reason = sequence.finish_reason(self.max_len);
        self.unfinished.insert(key, sequence.choices.clone());
        for fork in forks {
            let (key, reason) = (fork.key, fork.finish_reason(self.max_len));
            self.unfinished.insert(key, fork.choices.clone());
            self.scheduler.enqueue(self.sequences.insert(fork));
            if let Some(reason) = reason {
                self.finish(key, reason);
            }
        }
        if let Some(reason) = reason {
            self.finish(key, reason);
        }
    }
}

/// The tokens `start..end` of a sequence. The last may be one that the step under way draws.
fn inputs(sequence: &Sequence, start: usize, end: usize) -> impl Iterator<Item = TokenInput> + '_ {
    let there = sequence.tokens.len();
    let known = sequence.tokens[start.min(there)..end.min(there)].iter().copied().map(TokenInput::Id);
    known.chain(sequence.pending.filter(|_| end > there).map(TokenInput::Sampled))
}

/// How the token after a sequence's known ones is drawn.
fn sample_row(row: u32, sequence: &Sequence) -> SampleRow<'_> {
    SampleRow {
        row,
        params: &sequence.request.sampling,
        choices: sequence.choices.clone(),
        position: sequence.num_tokens() as u32,
        history: &sequence.tokens,
        prompt_len: sequence.prompt_len(),
        forbidden: sequence.forbidden(),
    }
}
