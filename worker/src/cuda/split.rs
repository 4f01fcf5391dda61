//! How a product of a decode step is cut among CTAs: the host's side of `kernels/split.cuh`.

/// Weight rows and inputs of one unit of work.
const ROWS: u32 = 128;
const INPUTS: u32 = 64;

/// The cut of one product `[tokens, n] = x[tokens, k] · weight[n, k]ᵀ`, the same for every number of tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// Units of one tile of rows.
    pub k_blocks: u32,
    /// Units in all.
    pub units: u32,
    /// CTAs that share them evenly, by number.
    pub ctas: u32,
}

impl Split {
    /// For a GPU of so many multiprocessors.
    ///
    /// Memory is what bounds a product, and on an H200 it takes nine tenths of the multiprocessors to saturate it; so of the
    /// numbers of CTAs from there on, one is chosen that gives every CTA as many units and cuts no tile where that is
    /// possible, or all tiles in the same places: then few parts have to be added up.
    pub fn new(n: u32, k: u32, multiprocessors: u32) -> Self {
        let k_blocks = k.div_ceil(INPUTS);
        let units = Self::tiles(n) * k_blocks;
        let most = multiprocessors.min(units);
        let least = (multiprocessors * 9 / 10).clamp(1, most);
        let even = |ctas: &u32| units.is_multiple_of(*ctas);
        let aligned = |ctas: &u32| {
            let each = units / ctas;
            even(ctas) && (each.is_multiple_of(k_blocks) || k_blocks.is_multiple_of(each))
        };
        let candidates = || (least..=most).rev();
        let ctas = candidates().find(aligned).or_else(|| candidates().find(even)).unwrap_or(most);
        Self { k_blocks, units, ctas }
    }

    /// Tiles of rows of a weight of `n` rows.
    pub fn tiles(n: u32) -> u32 {
        n.div_ceil(ROWS)
    }

    /// Which CTA takes a unit.
    fn owner(&self, unit: u32) -> u32 {
        ((u64::from(unit + 1) * u64::from(self.ctas) - 1) / u64::from(self.units)) as u32
    }

    /// Most CTAs that share one tile: planes of parts that the result takes.
    pub fn planes(&self) -> u32 {
        (0..self.units)
            .step_by(self.k_blocks as usize)
            .map(|first| self.owner(first + self.k_blocks - 1) - self.owner(first) + 1)
            .max()
            .unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes of models small and large, on GPUs of several sizes.
    fn splits() -> impl Iterator<Item = Split> {
        let shapes = [
            (6144, 4096),
            (4096, 4096),
            (28672, 4096),
            (4096, 14336),
            (896, 896),
            (1152, 896),
            (9728, 896),
            (896, 4864),
            (512, 512),
            (8, 8),
            (128, 100),
            (10240, 8192),
        ];
        shapes.into_iter().flat_map(|(n, k)| [16, 78, 114, 132].map(|sms| Split::new(n, k, sms)))
    }

    #[test]
    fn owners_are_the_ctas_whose_ranges_hold_the_units() {
        for split in splits() {
            let mut units = 0;
            for cta in 0..split.ctas {
                let bound =
                    |cta: u32| (u64::from(split.units) * u64::from(cta) / u64::from(split.ctas)) as u32;
                for unit in bound(cta)..bound(cta + 1) {
                    assert_eq!(split.owner(unit), cta, "unit {unit} of {split:?}");
                    units += 1;
                }
            }
            assert_eq!(units, split.units, "{split:?}");
        }
    }

    #[test]
    fn the_products_of_an_8b_model_are_cut_evenly() {
        let cuts = [(6144, 4096, 128, 4), (4096, 4096, 128, 4), (28672, 4096, 128, 2), (4096, 14336, 128, 4)];
        for (n, k, ctas, planes) in cuts {
            let split = Split::new(n, k, 132);
            assert_eq!((split.ctas, split.planes()), (ctas, planes), "{n} × {k}");
        }
    }

    #[test]
    fn never_more_ctas_than_units_nor_than_multiprocessors() {
        for split in splits() {
            assert!(split.ctas >= 1 && split.ctas <= split.units.min(132), "{split:?}");
            assert!(split.planes() <= split.k_blocks.min(split.ctas), "{split:?}");
        }
    }
}
