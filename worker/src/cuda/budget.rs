//! How much of a GPU's memory this process may take. Arithmetic alone, so that it is tested without a GPU.

use std::fmt;

const GIB: f64 = (1_u64 << 30) as f64;

/// A GPU's memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GpuMemory {
    /// Of the GPU.
    pub(super) total: u64,
    /// What nobody has.
    pub(super) free: u64,
    /// What was free when this process came: all that has gone since is taken to be its own.
    pub(super) free_at_first: u64,
}

/// Why there is too little.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct TooLittle {
    memory: GpuMemory,
    utilization: f64,
    /// What cannot be had.
    what: String,
}

impl GpuMemory {
    /// What this process has taken.
    fn own(self) -> u64 {
        self.free_at_first.saturating_sub(self.free)
    }

    /// What others have.
    fn others(self) -> u64 {
        self.total.saturating_sub(self.free + self.own())
    }

    /// The share of the whole that is this process's in all.
    fn share(self, utilization: f64) -> u64 {
        (self.total as f64 * utilization) as u64
    }

    /// What this process may still take: the rest of its share of the whole GPU, as far as it is free.
    pub(super) fn left(self, utilization: f64) -> u64 {
        self.share(utilization).saturating_sub(self.own()).min(self.free)
    }

    /// Whether other processes, and not the share, are what bounds this one.
    pub(super) fn is_crowded(self, utilization: f64) -> bool {
        self.share(utilization).saturating_sub(self.own()) > self.free
    }

    /// Refuses weights of so many bytes that cannot be had. With `utilization` within the share, otherwise within what
    /// is free.
    pub(super) fn check_weights(self, weights: u64, utilization: Option<f64>) -> Result<(), TooLittle> {
        let utilization = utilization.unwrap_or(1.0);
        if weights <= self.left(utilization) {
            return Ok(());
        }
        let what = format!("the weights take {:.1} GiB", weights as f64 / GIB);
        Err(TooLittle { memory: self, utilization, what })
    }

    /// KV blocks that fit beside `rest` bytes of everything else that is still to come. At least `needed` blocks, those
    /// of one sequence of `sequence_tokens` tokens.
    pub(super) fn kv_blocks(
        self,
        utilization: f64,
        rest: u64,
        block_bytes: u64,
        needed: u64,
        sequence_tokens: u32,
    ) -> Result<u64, TooLittle> {
        let left = self.left(utilization).saturating_sub(rest);
        let blocks = left / block_bytes;
        if blocks >= needed {
            return Ok(blocks);
        }
        let what = format!(
            "{} MiB are left for KV beside {} MiB for activations and the like, and one sequence of {sequence_tokens} \
             tokens needs {} MiB",
            left >> 20,
            rest >> 20,
            (needed * block_bytes) >> 20
        );
        Err(TooLittle { memory: self, utilization, what })
    }
}

impl fmt::Display for GpuMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / GIB;
        write!(
            f,
            "of the GPU's {:.1} GiB, {:.1} are free, {:.1} are held by other processes and {:.1} by this one",
            gib(self.total),
            gib(self.free),
            gib(self.others()),
            gib(self.own())
        )
    }
}

impl fmt::Display for TooLittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, utilization, what } = self;
        let share = memory.share(*utilization) as f64 / GIB;
        write!(
            f,
            "{what}; {memory}; --gpu-memory-utilization {utilization} gives this process {share:.1} GiB in all. "
        )?;
        if memory.is_crowded(*utilization) {
            f.write_str(
                "End what else runs on this GPU, or lower --max-model-len or --max-num-batched-tokens",
            )
        } else {
            f.write_str(
                "Raise --gpu-memory-utilization, lower --max-model-len or --max-num-batched-tokens, or take a smaller \
                 model or a larger GPU",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    fn memory(total: u64, free: u64, free_at_first: u64) -> GpuMemory {
        GpuMemory { total: total * GB, free: free * GB, free_at_first: free_at_first * GB }
    }

    #[test]
    fn the_share_is_of_the_whole_and_for_this_process_alone() {
        // Alone, with 16 GiB of weights loaded.
        assert_eq!(memory(80, 64, 80).left(0.5), 24 * GB);
        // Beside a process that holds half of it: the same share, since there is room.
        assert_eq!(memory(80, 24, 40).left(0.4), 16 * GB);
        // Beside one that leaves less than that: what is free.
        assert_eq!(memory(80, 4, 20).left(0.5), 4 * GB);
        assert!(memory(80, 4, 20).is_crowded(0.5) && !memory(80, 24, 40).is_crowded(0.4));
        // The share is used up.
        assert_eq!(memory(80, 64, 80).left(0.2), 0);
        // Others have ended meanwhile: what is free now is not this process's own, and not negative.
        assert_eq!(memory(80, 70, 40).left(0.9), 70 * GB);
        assert_eq!(memory(80, 70, 40).left(0.5), 40 * GB);
    }

    /// As reported: half of the GPU is somebody else's, and a worker at 0.4 found "0 MiB left for KV".
    #[test]
    fn beside_another_process_a_worker_gets_its_share() {
        let gib = |blocks: u64| blocks * 16 / 1024;
        let beside = memory(80, 24, 40).kv_blocks(0.4, 2 * GB, 16 << 20, 10, 8192).expect("there is room");
        let alone = memory(80, 64, 80).kv_blocks(0.4, 2 * GB, 16 << 20, 10, 8192).expect("there is room");
        assert_eq!((gib(beside), gib(alone)), (14, 14));
    }

    #[test]
    fn too_little_is_said_with_total_free_others_own_and_the_flag() {
        let crowded = memory(80, 3, 19).kv_blocks(0.9, 2 * GB, 16 << 20, 128, 8192).unwrap_err().to_string();
        assert_eq!(
            crowded,
            "1024 MiB are left for KV beside 2048 MiB for activations and the like, and one sequence of 8192 tokens \
             needs 2048 MiB; of the GPU's 80.0 GiB, 3.0 are free, 61.0 are held by other processes and 16.0 by this \
             one; --gpu-memory-utilization 0.9 gives this process 72.0 GiB in all. End what else runs on this GPU, or \
             lower --max-model-len or --max-num-batched-tokens"
        );
        let small = memory(80, 64, 80).kv_blocks(0.2, 2 * GB, 16 << 20, 128, 8192).unwrap_err().to_string();
        assert!(small.starts_with("0 MiB are left for KV"), "{small}");
        assert!(small.contains("0.0 are held by other processes and 16.0 by this one"), "{small}");
        assert!(small.contains("Raise --gpu-memory-utilization"), "{small}");
    }

    #[test]
    fn weights_have_to_fit_the_share_before_they_are_loaded() {
        let alone = memory(80, 79, 79);
        assert_eq!(alone.check_weights(70 * GB, Some(0.9)), Ok(()));
        let why = alone.check_weights(75 * GB, Some(0.9)).unwrap_err().to_string();
        assert!(why.starts_with("the weights take 75.0 GiB; of the GPU's 80.0 GiB, 79.0 are free"), "{why}");
        // With a pool of a size that was asked for, the share says nothing.
        assert_eq!(alone.check_weights(75 * GB, None), Ok(()));
        assert!(alone.check_weights(80 * GB, None).is_err());
    }
}
