//! Philox4x32-10, a counter-based random generator: a pure function of (key, counter), so that a retry, a preemption
//! or another worker draws the same numbers without any state to carry.
//!
//! Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC11.
//! Tests hold the known answers published with it (Random123, `kat_vectors`).

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// 128 random bits.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [low0, high0] = multiply(MULTIPLIERS[0], counter[0]);
        let [low1, high1] = multiply(MULTIPLIERS[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Low and high half of the product.
fn multiply(a: u32, b: u32) -> [u32; 2] {
    let product = u64::from(a) * u64::from(b);
    [product as u32, (product >> 32) as u32]
}

/// A number in `[0, 1)` with 53 random bits, for the token at `position` of choice `choice` of the request with `seed`.
pub fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let [a, b, ..] = philox4x32([position, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(a) << 21) | (u64::from(b) >> 11);
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_argument_counts() {
        let base = uniform(1, 2, 3);
        assert!((0.0..1.0).contains(&base));
        for other in [uniform(0, 2, 3), uniform(1 | 1 << 63, 2, 3), uniform(1, 0, 3), uniform(1, 2, 4)] {
            assert!((other - base).abs() > 1e-12);
        }
    }

    /// Chi-square over 64 cells, once along positions, once along choices, once along seeds.
    #[test]
    fn is_uniform_along_every_argument() {
        type Draw = fn(u32) -> f64;
        let draws: [(&str, Draw); 3] = [
            ("position", |i| uniform(7, 0, i)),
            ("choice", |i| uniform(7, i, 11)),
            ("seed", |i| uniform(u64::from(i), 0, 11)),
        ];
        for (name, draw) in draws {
            let mut cells = [0u32; 64];
            for i in 0..64_000 {
                cells[(draw(i) * 64.0) as usize] += 1;
            }
            let chi2: f64 = cells.iter().map(|count| (f64::from(*count) - 1000.0).powi(2) / 1000.0).sum();
            // 63 degrees of freedom: 0.1 % of fair generators are beyond 103.4, 0.1 % below 34.
            assert!((30.0..105.0).contains(&chi2), "{name}: chi-square {chi2}");
        }
    }
}
