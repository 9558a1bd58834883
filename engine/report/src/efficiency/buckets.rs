//! Many steps as few points, for a curve.

/// Steps that one point of a curve stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// In the middle.
    pub step: f64,
    pub mean: f64,
    pub least: f64,
    pub most: f64,
}

/// Larger numbers are damage, and no axis can show them.
const LARGEST: f64 = 1e30;

pub fn can_be_shown(value: f64) -> bool {
    value.abs() < LARGEST
}

/// At most `most` buckets of as many points each, but for the last. Points that are not numbers are left out.
pub fn buckets(points: impl IntoIterator<Item = (u64, f64)>, most: usize) -> Vec<Bucket> {
    let points: Vec<(u64, f64)> = points.into_iter().filter(|&(_, value)| can_be_shown(value)).collect();
    let each = points.len().div_ceil(most).max(1);
    points.chunks(each).map(bucket).collect()
}

fn bucket(points: &[(u64, f64)]) -> Bucket {
    let values = || points.iter().map(|&(_, value)| value);
    Bucket {
        step: (points[0].0 + points[points.len() - 1].0) as f64 / 2.0,
        mean: values().sum::<f64>() / points.len() as f64,
        least: values().fold(f64::INFINITY, f64::min),
        most: values().fold(f64::NEG_INFINITY, f64::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_become_few_and_few_stay() {
        let few = buckets([(3, 1.0), (4, f64::NAN), (4, 1e308), (5, 2.0)], 600);
        assert_eq!(few.len(), 2);
        assert_eq!(few[1], Bucket { step: 5.0, mean: 2.0, least: 2.0, most: 2.0 });
        let many = buckets((1..=1201).map(|step| (step, (step % 3) as f64)), 600);
        assert_eq!(many.len(), 401, "three a bucket");
        assert_eq!(many[0], Bucket { step: 2.0, mean: 1.0, least: 0.0, most: 2.0 });
        assert_eq!((many[400].step, many[400].mean), (1201.0, 1.0));
        assert!(buckets([], 600).is_empty());
    }
}
