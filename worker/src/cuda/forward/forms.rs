//! Which kernels compute the layers of a decode step: own products are faster for few tokens, cublasLt's for some shapes
//! of many. What is faster is found out by timing, once for a GPU, a model's shape and a number of rows.

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::CUevent_flags;

use super::super::compile;
use super::super::device::{Buffer, Device};
use super::super::step::Step;
use super::super::{CudaError, Doing};
use super::layers::products;
use super::{Model, PRODUCTS};

/// Rows up to which own products are taken untimed. On an H100 all of them together were 3 to 10 % faster there.
const OWN_ROWS: u32 = 16;
/// Layers that are timed: their weights must not fit into the L2 cache together.
const LAYERS: usize = 8;
/// Runs of each candidate; the fastest counts, since noise only ever adds.
const RUNS: usize = 7;
/// What a candidate must take of the best before it to be worth the change.
const WORTHWHILE: f32 = 0.995;

/// How the layers of a decode step are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeForm {
    /// As those of any other step.
    General,
    /// As a chain of dependent launches. For each product of a layer (qkv, output, gate_up, down): whether cublasLt
    /// computes it.
    Chain([bool; PRODUCTS]),
}

impl DecodeForm {
    /// All products are our own.
    pub const OWN: Self = Self::Chain([false; PRODUCTS]);

    /// One word, for the file of timed choices.
    pub fn as_word(self) -> String {
        match self {
            Self::General => "general".to_owned(),
            Self::Chain(library) => library.iter().map(|&library| if library { 'l' } else { 'o' }).collect(),
        }
    }

    /// What [`Self::as_word`] writes.
    pub fn from_word(word: &str) -> Option<Self> {
        if word == "general" {
            return Some(Self::General);
        }
        let library: Vec<bool> = word
            .chars()
            .map(|letter| match letter {
                'l' => Some(true),
                'o' => Some(false),
                _ => None,
            })
            .collect::<Option<_>>()?;
        Some(Self::Chain(library.try_into().ok()?))
    }
}

impl Model {
    /// The form that a decode step of `rows` rows takes.
    pub fn decode_form(&self, rows: u32) -> DecodeForm {
        if !self.has_decode_chain(rows) {
            return DecodeForm::General;
        }
        self.forms.get(&rows).copied().unwrap_or(DecodeForm::OWN)
    }

    /// Takes this form for decode steps of `rows` rows from now on, to compare.
    pub fn set_decode_form(&mut self, rows: u32, form: DecodeForm) {
        self.forms.insert(rows, form);
    }

    /// Finds out which form is fastest for decode steps of `rows` rows, unless an earlier start did, and makes its
    /// products ready. Not while a graph is captured.
    pub fn choose_decode_form(&mut self, rows: u32, flush: &Buffer<u8>) -> Result<(), CudaError> {
        if !self.has_decode_chain(rows) {
            return self.tune(rows, flush);
        }
        if rows <= OWN_ROWS {
            return Ok(());
        }
        self.tune(rows, flush)?;
        self.tune_parts(rows, flush)?;
        let key = self.form_key(rows);
        let known = self.blas.tuned().form(&key);
        let form = match known {
            Some(form) => form,
            None => self.time_forms(rows)?,
        };
        if known.is_none() {
            self.blas.tuned().put_form(key, form);
        }
        self.set_decode_form(rows, form);
        Ok(())
    }

    /// What a timed form depends on beside GPU, driver and library: how our kernels are written, and what they multiply.
    fn form_key(&self, rows: u32) -> String {
        let spec = &self.spec;
        format!(
            "{rows} {:x} {} {} {} {} {}",
            compile::sources_hash(),
            spec.hidden_size,
            spec.mlp_width(),
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim
        )
    }

    /// Times the algorithms of the products that cublasLt computes in a chain: into one plane of parts.
    fn tune_parts(&mut self, rows: u32, flush: &Buffer<u8>) -> Result<(), CudaError> {
        let Some(parts) = self.kernels.decode_chain.as_ref().map(|chain| chain.parts.address()) else {
            return Ok(());
        };
        for (linear, x, _, _) in products(&self.weights.layers[0], &self.activations) {
            let shape = linear.parts_shape(rows);
            self.blas.tune(&self.device, shape, linear.weight.address(), 0, x, parts, flush)?;
        }
        Ok(())
    }

    /// Makes every product of a chain of `rows` rows ready to be computed by cublasLt, untimed.
    pub fn prepare_parts(&mut self, rows: u32) -> Result<(), CudaError> {
        let shapes =
            products(&self.weights.layers[0], &self.activations).map(|(linear, ..)| linear.parts_shape(rows));
        shapes.into_iter().try_for_each(|shape| self.blas.prepare(shape))
    }

    fn time_forms(&mut self, rows: u32) -> Result<DecodeForm, CudaError> {
        let (step, _inputs) = self.timing_step(rows)?;
        let own = self.time_form(&step, DecodeForm::OWN)?;
        let (mut best, mut library) = (own, [false; PRODUCTS]);
        for product in 0..PRODUCTS {
            library[product] = true;
            let time = self.time_form(&step, DecodeForm::Chain(library))?;
            library[product] = time < WORTHWHILE * best;
            if library[product] {
                best = time;
            }
        }
        let general = self.time_form(&step, DecodeForm::General)?;
        let form = if general < WORTHWHILE * best { DecodeForm::General } else { DecodeForm::Chain(library) };
        tracing::debug!(rows, own, best, general, form = form.as_word(), "decode steps timed, in ms");
        Ok(form)
    }

    /// The fastest of some runs of a few layers, in milliseconds.
    fn time_form(&mut self, step: &Step, form: DecodeForm) -> Result<f32, CudaError> {
        let run = |model: &mut Self| {
            model.begin(step)?;
            model.some_layers(step, form, LAYERS)
        };
        // Once without recording: cublasLt and the driver load what they need, which a recording must not do.
        run(self)?;
        let graph = self.record(run)?;
        let event = |device: &Device| {
            device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).doing("recording an event")
        };
        let mut fastest = f32::INFINITY;
        for _ in 0..RUNS {
            let begun = event(&self.device)?;
            graph.launch().doing("replaying a graph")?;
            let ended = event(&self.device)?;
            fastest = fastest.min(begun.elapsed_ms(&ended).doing("timing a step")?);
        }
        Ok(fastest)
    }

    /// Records what `issue` issues on the device's stream, as a graph.
    pub fn record(
        &mut self,
        issue: impl FnOnce(&mut Self) -> Result<(), CudaError>,
    ) -> Result<CudaGraph, CudaError> {
        use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
        let stream = self.device.stream.clone();
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .doing("recording a graph")?;
        let issued = issue(self);
        let graph = stream
            .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
            .doing("recording a graph");
        issued?;
        graph?.ok_or_else(|| CudaError {
            doing: "recording a graph".to_owned(),
            cause: "it came out empty".to_owned(),
        })
    }

    /// A decode step of `rows` rows that appends nothing and reads the pool's first block, which may hold anything; and
    /// the memory that its inputs are in.
    fn timing_step(&self, rows: u32) -> Result<(Step, Buffer<u32>), CudaError> {
        const IDS: u32 = 97;
        let rows_at = |section: u32| (section * rows.next_multiple_of(8)) as usize;
        let mut words = vec![0; rows_at(6)];
        for row in 0..rows {
            let mut put = |section: u32, value: u32| words[rows_at(section) + row as usize] = value;
            put(0, row * IDS % self.spec.vocab_size as u32);
            put(1, 0);
            put(2, u32::MAX);
            put(3, row);
            put(4, 1);
            put(5, 0);
        }
        let inputs = self.device.upload("the inputs of a timed step", &words)?;
        let step = Step {
            tokens: rows,
            ids: inputs.at(rows_at(0)),
            positions: inputs.at(rows_at(1)),
            slots: inputs.at(rows_at(2)),
            decode_rows: rows,
            q_rows: inputs.at(rows_at(3)),
            context_lens: inputs.at(rows_at(4)),
            decode_tables: inputs.at(rows_at(5)),
            table_stride: 1,
            samples: rows,
            sample_rows: inputs.at(rows_at(3)),
            ..Step::default()
        };
        Ok((step, inputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_back_as_they_are_written() {
        for form in [DecodeForm::General, DecodeForm::OWN, DecodeForm::Chain([true, false, false, true])] {
            assert_eq!(DecodeForm::from_word(&form.as_word()), Some(form));
        }
        for word in ["", "ooo", "ooooo", "oolx"] {
            assert_eq!(DecodeForm::from_word(word), None, "{word}");
        }
    }
}
