//! Which captured graph serves a decode step: one per bucket of rows, captured on first use.

use crate::backend::Graph;

/// Captured decode graphs by number of rows.
pub struct Graphs {
    /// Ascending row counts.
    sizes: Vec<u32>,
    graphs: Vec<Option<Graph>>,
}

impl Graphs {
    /// Buckets for up to `rows` rows: multiples of `step` and powers of two below it, or exactly `sizes` when the
    /// operator names them.
    /// Above `most` buckets the distance grows.
    pub fn new(rows: u32, step: u32, sizes: Option<&[u32]>, most: usize) -> Self {
        let mut sizes: Vec<u32> = match sizes {
            Some(s) => s.iter().copied().filter(|n| *n > 0 && *n <= rows).collect(),
            None => {
                let step = step.max(rows.div_ceil(most as u32)).max(1);
                let below = (0..).map(|i| 1 << i).take_while(|n| *n < step.min(rows));
                below.chain((1..=rows.div_ceil(step)).map(|i| (i * step).min(rows))).collect()
            }
        };
        sizes.sort_unstable();
        sizes.dedup();
        sizes.truncate(most);
        let graphs = vec![None; sizes.len()];
        Graphs { sizes, graphs }
    }

    /// No graphs: every step runs eagerly.
    pub fn none() -> Self {
        Graphs { sizes: Vec::new(), graphs: Vec::new() }
    }

    /// The smallest bucket that holds `rows`, if any: its index and size.
    pub fn bucket(&self, rows: u32) -> Option<(usize, u32)> {
        let i = self.sizes.partition_point(|n| *n < rows);
        self.sizes.get(i).map(|n| (i, *n))
    }

    /// The bucket's graph, once captured.
    pub fn get(&self, bucket: usize) -> Option<&Graph> {
        self.graphs[bucket].as_ref()
    }

    /// Keeps a captured graph.
    pub fn put(&mut self, bucket: usize, graph: Graph) {
        self.graphs[bucket] = Some(graph);
    }

    /// Forgets all buckets: the stream turned out not to capture.
    pub fn disable(&mut self) {
        *self = Graphs::none();
    }

    /// How many graphs are held.
    pub fn captured(&self) -> usize {
        self.graphs.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_bucket_that_fits_is_chosen() {
        let g = Graphs::new(20, 8, None, 512);
        assert_eq!(g.bucket(1), Some((0, 1)));
        assert_eq!(g.bucket(3), Some((2, 4)));
        assert_eq!(g.bucket(5), Some((3, 8)));
        assert_eq!(g.bucket(9), Some((4, 16)));
        assert_eq!(g.bucket(20), Some((5, 20)));
        assert_eq!(g.bucket(21), None);
        assert_eq!(Graphs::new(16, 1, Some(&[4, 2, 99, 0]), 512).bucket(3), Some((1, 4)));
        assert_eq!(Graphs::none().bucket(1), None);
    }
}
