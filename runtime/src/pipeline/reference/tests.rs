use std::path::Path;

use super::*;
use crate::media::video::read_frames;

#[test]
fn reference_knobs_choose_resize_and_scale() {
    let data: Vec<u8> = (0..10u8).flat_map(|f| [f * 20; 8 * 4 * 3]).collect();
    let frames = Frames::new(8, 4, data, Some(16.0)).unwrap();
    let pixels = |knobs: &ReferenceConfig| reference_pixels(knobs, Reference::Frames(&frames), (16, 16)).unwrap();
    let base = ReferenceConfig::default();
    assert_eq!(pixels(&base).shape(), [1, 3, 10, 16, 16]);
    assert_eq!(pixels(&base)[[0, 0, 9, 3, 3]], 180.0 / 255.0);
    let signed = pixels(&ReferenceConfig { range: PixelRange::Signed, ..base });
    assert_eq!(signed[[0, 2, 9, 3, 3]], 2.0 * (180.0 / 255.0) - 1.0);
    assert_eq!(pixels(&ReferenceConfig { frames: ReferenceFrames::FirstN(3), ..base }).shape()[2], 3);
    let slow = pixels(&ReferenceConfig { frames: ReferenceFrames::Resample { count: 49, fps: 8.0 }, ..base });
    assert_eq!((slow.shape()[2], slow[[0, 0, 1, 0, 0]]), (5, 40.0 / 255.0));
    assert_eq!(pixels(&ReferenceConfig { resize: ReferenceResize::None, ..base }).shape(), [1, 3, 10, 4, 8]);
    assert_eq!(pixels(&ReferenceConfig { resize: ReferenceResize::CoverCrop, ..base }).shape(), [1, 3, 10, 16, 16]);
    let tensor = Array5::from_elem([1, 3, 1, 8, 8], -1.0);
    let unit = reference_pixels(&base, Reference::Pixels(&tensor), (16, 16)).unwrap();
    assert!(unit.iter().all(|&x| x == 0.0) && unit.shape() == [1, 3, 1, 8, 8]);
}

#[test]
fn frames_that_last_unevenly_are_chosen_by_their_times() {
    let starts = [0.0, 0.1, 0.2, 0.5, 0.6];
    let chosen =
        |fps: f64| (0..).map(|k| nearest(&starts, f64::from(k) / fps)).take_while(|&i| i < 4).collect::<Vec<_>>();
    assert_eq!(chosen(10.0), [0, 1, 2, 2, 3, 3]);
    assert_eq!(chosen(5.0), [0, 2, 3]);
    assert_eq!(chosen(1.0), [0]);
    // Even times choose as their rate does.
    let even: Vec<f64> = (0..=9).map(|i| f64::from(i) / 10.0).collect();
    let data: Vec<u8> = (0..9u8).flat_map(|f| [f; 3]).collect();
    let frames = Frames::new(1, 1, data, Some(10.0)).unwrap();
    for fps in [3.0, 8.0, 12.0, 30.0] {
        let by_rate = super::chosen(ReferenceFrames::Resample { count: 49, fps }, &frames);
        let by_times: Vec<usize> = (0..49).map(|k| nearest(&even, f64::from(k) / fps)).take_while(|&i| i < 9).collect();
        assert_eq!(by_rate, by_times, "{fps}");
    }
}

#[test]
fn reference_pixels_equal_the_golden_bytes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pipeline/fun");
    let frames = read_frames(Path::new(&format!("{folder}/reference_frames")), None).unwrap();
    let bytes = std::fs::read(format!("{folder}/case_steered.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let golden = file.tensor("output.reference_pixels").unwrap();
    let &[count, height, width, 3] = golden.shape() else { panic!("{:?}", golden.shape()) };
    let pixels = reference_pixels(&ReferenceConfig::default(), Reference::Frames(&frames), (width, height)).unwrap();
    assert_eq!(pixels.shape(), [1, 3, count, height, width]);
    let expected = golden.data().iter().map(|&b| f32::from(b) / 255.0);
    assert!(pixels.view().permuted_axes([0, 2, 3, 4, 1]).iter().copied().eq(expected));
}
