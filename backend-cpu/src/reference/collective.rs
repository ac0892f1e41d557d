//! AllReduce, AllGather, ReduceScatter, as functions of what each rank of a group brings, in rank order. The reference
//! as a device is a group of one.

/// Σ over ranks, in rank order; each rank has all of it. Every x [T, H], the sum [T, H].
pub fn all_reduce(ranks: &[&[f32]]) -> Vec<f32> {
    let Some((first, rest)) = ranks.split_first() else { return Vec::new() };
    let sum = |i: usize| rest.iter().fold(first[i], |sum, x| sum + x[i]);
    (0..first.len()).map(sum).collect()
}

/// Rows of all ranks side by side. Every x [T, H] with `width` = H, the result [T, w·H].
pub fn all_gather(ranks: &[&[f32]], width: usize) -> Vec<f32> {
    let rows = ranks.first().map_or(0, |x| x.len() / width);
    let row = |t: usize| ranks.iter().flat_map(move |x| x[t * width..][..width].iter().copied());
    (0..rows).flat_map(row).collect()
}

/// The columns of the sum that `rank` keeps: the mirror of [`all_gather`]. Every x [T, H] with `width` = H, which w
/// divides; the result [T, H/w].
pub fn reduce_scatter(ranks: &[&[f32]], width: usize, rank: usize) -> Vec<f32> {
    let kept = width / ranks.len();
    let sum = all_reduce(ranks);
    sum.chunks_exact(width).flat_map(|row| row[rank * kept..][..kept].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [2, 4] of each of two ranks.
    const A: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    const B: [f32; 8] = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0];

    #[test]
    fn two_ranks_sum_and_gather() {
        let sum = [10.0, 21.0, 32.0, 43.0, 54.0, 65.0, 76.0, 87.0];
        assert_eq!(all_reduce(&[&A, &B]), sum);
        let rows = [&A[..4], &B[..4], &A[4..], &B[4..]].concat();
        assert_eq!(all_gather(&[&A, &B], 4), rows);
        assert_eq!(reduce_scatter(&[&A, &B], 4, 0), [10.0, 21.0, 54.0, 65.0]);
        assert_eq!(reduce_scatter(&[&A, &B], 4, 1), [32.0, 43.0, 76.0, 87.0]);
    }

    #[test]
    fn sums_are_made_in_rank_order_and_one_rank_is_left_alone() {
        assert_eq!(all_reduce(&[&[1e8], &[-1e8], &[1.0]]), [1.0]);
        assert_eq!(all_reduce(&[&[1.0], &[1e8], &[-1e8]]), [0.0]);
        assert_eq!(all_reduce(&[&[-0.0]])[0].to_bits(), (-0.0f32).to_bits());
    }
}
