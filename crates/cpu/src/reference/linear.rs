//! Matrix products with stored weights.

/// `sum(a[i] * b[i])` in f64: eight interleaved partial sums, so that compilers can use vectors.
pub(crate) fn dot(a: &[f32], b: &[f64]) -> f64 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] as f64 * b[i];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| *a as f64 * b).sum::<f64>()
}

/// `y[t] = W x[t] + bias` for every token: `weight[rows, cols]`, `x[tokens, cols]`, result `[tokens, rows]`.
pub(crate) fn linear(weight: &[f32], cols: usize, bias: Option<&[f32]>, x: &[f64]) -> Vec<f64> {
    let (rows, tokens) = (weight.len() / cols, x.len() / cols);
    let mut y = vec![0.0; tokens * rows];
    for (r, row) in weight.chunks_exact(cols).enumerate() {
        for t in 0..tokens {
            y[t * rows + r] = dot(row, &x[t * cols..(t + 1) * cols]) + bias.map_or(0.0, |b| b[r] as f64);
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_product_with_bias() {
        let weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let y = linear(&weight, 3, Some(&[0.5, -0.5]), &[1.0, 0.0, -1.0, 2.0, 1.0, 0.0]);
        assert_eq!(y, [-1.5, -2.5, 4.5, 12.5]);
    }

    #[test]
    fn dot_covers_every_element() {
        for n in [1, 7, 8, 9, 31] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want = (0..n).map(|i| (i * i) as f64).sum::<f64>();
            assert_eq!(dot(&a, &a.iter().map(|v| *v as f64).collect::<Vec<_>>()), want);
        }
    }
}
