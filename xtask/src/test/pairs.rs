//! Few configurations in which every pair of values meets: what goes wrong goes wrong, nearly always, because of one value or of two together.

/// Rows of indices into lists of these lengths: for any two lists, each value of one meets each value of the other in at least one row. The
/// same lengths give the same rows.
pub(super) fn cover(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut left = all_pairs(lengths);
    let mut rows = Vec::new();
    while let Some(&(one, two)) = left.first() {
        let mut row = vec![None; lengths.len()];
        (row[one.0], row[two.0]) = (Some(one.1), Some(two.1));
        for list in 0..lengths.len() {
            if row[list].is_some() {
                continue;
            }
            let gain = |value: usize| {
                let fixed = row.iter().enumerate().filter_map(|(list, value)| Some((list, (*value)?)));
                fixed.filter(|other| left.contains(&ordered((list, value), *other))).count()
            };
            // Of several as good, the one that this list is due to have next: no value is left for the end.
            let turn = rows.len();
            row[list] = (0..lengths[list]).map(|step| (step + turn) % lengths[list]).max_by_key(|value| {
                (gain(*value), lengths[list] - (value + lengths[list] - turn % lengths[list]) % lengths[list])
            });
        }
        let row: Vec<usize> = row.into_iter().map(|value| value.unwrap_or(0)).collect();
        left.retain(|(one, two)| row[one.0] != one.1 || row[two.0] != two.1);
        rows.push(row);
    }
    rows
}

/// A value: its list and its index in that.
type Value = (usize, usize);

fn ordered(one: Value, two: Value) -> (Value, Value) {
    if one < two { (one, two) } else { (two, one) }
}

/// Those of the longest lists first: they decide how many rows there are.
fn all_pairs(lengths: &[usize]) -> Vec<(Value, Value)> {
    let mut lists: Vec<(usize, usize)> =
        (0..lengths.len()).flat_map(|two| (0..two).map(move |one| (one, two))).collect();
    lists.sort_by_key(|(one, two)| usize::MAX - lengths[*one] * lengths[*two]);
    let values = |(one, two): (usize, usize)| {
        (0..lengths[one]).flat_map(move |a| (0..lengths[two]).map(move |b| ((one, a), (two, b))))
    };
    lists.into_iter().flat_map(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_values_meets_in_few_rows() {
        for lengths in [&[2, 4, 5, 4, 2, 6, 4][..], &[3, 3, 3, 3], &[7, 1, 5], &[2, 2]] {
            let rows = cover(lengths);
            for (one, two) in all_pairs(lengths) {
                assert!(rows.iter().any(|row| row[one.0] == one.1 && row[two.0] == two.1), "{one:?} {two:?}");
            }
            assert!(rows.iter().flatten().zip(lengths.iter().cycle()).all(|(value, length)| value < length));
            let mut longest = lengths.to_vec();
            longest.sort_unstable();
            let least = longest.pop().unwrap() * longest.pop().unwrap();
            assert!(rows.len() <= least + least / 2 + 2, "{} rows for {lengths:?}", rows.len());
            assert_eq!(rows, cover(lengths));
        }
    }
}
