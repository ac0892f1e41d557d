//! The real trained model in `../shared/models/stories260k` answers as its golden file says, in every way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use tests::devices::cpu;
use tests::golden::Golden;
use tests::models::Stories;

fn with_stories(check: impl Fn(&Golden<'_>)) {
    if let Some(stories) = Stories::open() {
        check(&stories.golden());
    }
}

#[test]
fn stories260k_reproduces_its_goldens() {
    with_stories(|golden| golden.check_every_way(&cpu));
}

#[test]
#[cfg(feature = "cuda")]
fn cuda_reproduces_its_goldens() {
    tests::devices::on_cuda(&|cuda| with_stories(|golden| golden.check_every_way(cuda)));
}
