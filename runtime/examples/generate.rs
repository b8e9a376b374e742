//! Predicts an adapter from a reference and generates a video with it.
//!
//! cargo run --release -p v2l-runtime --example generate -- ENGINES REFERENCE IMAGE PROMPT OUT.mp4

use std::path::Path;

use v2l_runtime::events::{Event, Observer};
use v2l_runtime::{AdapterSet, Clip, Error, Generator, Options, PredictOptions, Request};

/// Shows what happens.
struct Printed;

impl Observer for Printed {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { phase, done, total } => eprint!("\r{phase:?} {done}/{total} "),
            Event::PhaseFinished { .. } => eprintln!(),
            Event::Warning { message } => eprintln!("warning: {message}"),
            Event::PhaseStarted { .. } => {}
        }
    }
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engines, reference, image, prompt, out] = &arguments[..] else {
        eprintln!("usage: generate ENGINES REFERENCE IMAGE PROMPT OUT.mp4");
        std::process::exit(2);
    };
    let mut generator = Generator::open(engines, &Options::default())?;
    // What could not be written in the end is refused now.
    generator.check_destination(out)?;
    let image = Clip::read(Path::new(image), None)?.into_frames()?;
    let reference = Clip::read(Path::new(reference), None)?;

    let asked = PredictOptions { image: Some(&image), ..PredictOptions::default() };
    let effect = generator.predict_with(&reference, &asked, &mut Printed)?;
    let applied = generator.set_adapters(&AdapterSet::from([(&effect.adapter, 1.0)]), None)?;
    eprintln!("{} slots are changed, {}", applied.slots, applied.reason);

    let mut request = Request::new(prompt);
    request.image = Some(image);
    generator.generate_with(&request, &mut Printed)?.save(out)
}
