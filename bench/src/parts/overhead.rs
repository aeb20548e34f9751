//! What the instrument itself costs: two equal loads must come out equal.

use std::{hint::black_box, time::Duration};

use anyhow::Result;

use super::Part;
use crate::{
    bench::Bench,
    case::{Case, Reading, Unit},
    contestant::{Contestant, Lane, Sample},
    measure::cpu::{self, Window},
};

pub const PART: Part = Part {
    name: "overhead",
    about: "the same load twice, which must come out equal",
    run,
};

fn run(bench: &mut Bench) -> Result<()> {
    let case = Case::new("the same load twice", Unit::Ns, "first").compare(
        "second",
        "first",
        Reading::Cost,
        None,
    );
    bench.race(&case, &[&Load("first"), &Load("second")])
}

struct Load(&'static str);

impl Contestant for Load {
    fn name(&self) -> &str {
        self.0
    }

    fn start(&self) -> Result<Box<dyn Lane + '_>> {
        Ok(Box::new(Spin))
    }
}

struct Spin;

impl Lane for Spin {
    fn prove(&mut self) -> Result<()> {
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        const TURNS: u64 = 20_000_000;
        std::thread::scope(|scope| {
            let spinning = scope.spawn(|| {
                cpu::pin(cpu::WORK)?;
                let window = Window::open(&[])?;
                for turn in 0..TURNS {
                    black_box(turn);
                }
                window.close()
            });
            let spent = spinning.join().expect("it does not panic")?;
            let each = |wall: Duration| wall.as_nanos() as f64 / TURNS as f64;
            Ok(Sample {
                disturbed: spent.disturbed,
                ..Sample::of(each(spent.wall))
            })
        })
    }
}
