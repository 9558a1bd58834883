//! Against transformers: `tests/golden/mxfp4` has all codes with all scales, and what transformers makes of them.

use super::*;
use crate::checkpoint::tests::elements;
use crate::model::rect::Rect;
use half::bf16;
use std::path::Path;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/mxfp4/golden.safetensors");

/// The file, and transformers' numbers `[E, in, out]` as `[E out, in]`.
fn golden() -> (TensorFile, Vec<Vec<bf16>>) {
    let file = TensorFile::open(Path::new(GOLDEN)).unwrap();
    let info = file.info("values").unwrap();
    let &[matrices, inputs, features] = &info.shape[..] else { panic!("{:?}", info.shape) };
    let mut bytes = vec![0; matrices * inputs * features * 2];
    file.read_bytes(info, 0, &mut bytes).unwrap();
    let value = |i: usize| bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    let row = |(e, feature)| (0..inputs).map(|input| value((e * inputs + input) * features + feature)).collect();
    let rows = (0..matrices).flat_map(|e| (0..features).map(move |feature| (e, feature))).map(row).collect();
    (file, rows)
}

fn matrices(file: &TensorFile) -> Mxfp4<'_> {
    Mxfp4::new(["blocks", "scales"].map(|name| (file, file.info(name).unwrap())))
}

/// All bits of all numbers, also of zeros, of the smallest numbers, and of those that are infinite.
#[test]
fn every_code_and_scale_is_that_of_transformers() {
    let (file, want) = golden();
    let (rows, inputs) = (want.len(), want[0].len());
    let mut got = vec![0.0; rows * inputs];
    matrices(&file).read(&(0..rows), 1, &(0..inputs), &mut got).unwrap();
    let wide: Vec<u32> = want.iter().flatten().map(|x| x.to_f32().to_bits()).collect();
    assert_eq!(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), wide);
    let (finite, smallest) = (|x: &&f32| x.is_finite(), f32::from_bits(1 << 21));
    assert_eq!(got.iter().filter(finite).count(), got.len() - 48);
    assert!(got.contains(&smallest) && got.contains(&-smallest) && got.contains(&f32::INFINITY));
}

#[test]
fn any_rectangle_is_a_part_of_the_whole() {
    let (file, want) = golden();
    for (rows, step) in [(0..1, 1), (3..14, 1), (0..16, 2), (1..16, 2), (9..16, 3)] {
        for inputs in [0..512, 0..1, 1..2, 31..33, 5..470, 64..96, 7..7] {
            let features: Vec<usize> = rows.clone().step_by(step).collect();
            let mut got = vec![f32::NAN; features.len() * inputs.len()];
            matrices(&file).read(&rows, step, &inputs, &mut got).unwrap();
            let all: Vec<f32> = features.iter().flat_map(|&row| want[row].iter().map(|x| x.to_f32())).collect();
            let rect = Rect { rows: 0..features.len(), cols: inputs.clone() };
            let want: Vec<f32> = elements(&rect, 512).map(|at| all[at]).collect();
            assert_eq!(got, want, "rows {rows:?} by {step}, inputs {inputs:?}");
        }
    }
}
