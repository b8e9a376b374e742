//! Orthogonal bases and singular values of small matrices.

use ndarray::{Array2, ArrayView1, ArrayViewMut1, Axis, Zip};

/// Rotations stop when all pairs of vectors are orthogonal to this, relative to their lengths.
const ORTHOGONAL: f64 = 1e-15;
/// Far more sweeps than one-sided Jacobi ever takes.
const MAX_SWEEPS: usize = 60;

/// Orthonormal vectors `q`, in rows, and coefficients `r` `[k, n]` with `vectorⱼ = Σᵢ r[i, j] · qᵢ`, for `n` vectors in
/// the rows of `vectors` and `k = min(n, length)`: Householder's QR factorization (Golub and Van Loan, 5.2.1).
pub(super) fn qr(mut vectors: Array2<f64>) -> (Array2<f64>, Array2<f64>) {
    let (n, length) = vectors.dim();
    let k = n.min(length);
    // Reflector j is zero before its j-th element; a zero reflector changes nothing.
    let mut reflectors = Array2::<f64>::zeros((k, length));
    for j in 0..k {
        let mut reflector = vectors.row(j).to_owned();
        reflector.iter_mut().take(j).for_each(|x| *x = 0.0);
        let norm = norm(&reflector.view());
        if norm == 0.0 {
            continue;
        }
        reflector[j] += norm.copysign(reflector[j]);
        let length = self::norm(&reflector.view());
        reflector /= length;
        for mut vector in vectors.axis_iter_mut(Axis(0)).skip(j) {
            reflect(&reflector.view(), &mut vector);
        }
        reflectors.row_mut(j).assign(&reflector);
    }
    let r = Array2::from_shape_fn((k, n), |(i, j)| if i <= j { vectors[[j, i]] } else { 0.0 });
    let mut q = Array2::<f64>::zeros((k, length));
    for (i, mut row) in q.axis_iter_mut(Axis(0)).enumerate() {
        row[i] = 1.0;
        for reflector in reflectors.axis_iter(Axis(0)).rev() {
            reflect(&reflector, &mut row);
        }
    }
    (q, r)
}

/// `x - 2 (v · x) v`, in place; `v` is of length 1 or 0.
fn reflect(v: &ArrayView1<'_, f64>, x: &mut ArrayViewMut1<'_, f64>) {
    let twice = 2.0 * v.dot(x);
    Zip::from(x).and(v).for_each(|x, &v| *x -= twice * v);
}

/// Singular vectors, in rows, and values of `m` `[rows, columns]`, the largest first: `m = Σᵢ sᵢ · uᵢ · vᵢᵀ` over
/// `min(rows, columns)` terms. A left vector of a value 0 is 0, or a right one, where there are more columns than rows.
///
/// One-sided Jacobi rotations, which give small values to full relative precision (Demmel and Veselić, 1992).
pub(super) fn svd(m: &Array2<f64>) -> (Array2<f64>, Vec<f64>, Array2<f64>) {
    if m.nrows() < m.ncols() {
        let (v, s, u) = svd(&m.t().as_standard_layout().into_owned());
        return (u, s, v);
    }
    let mut columns = m.t().as_standard_layout().into_owned();
    let n = columns.nrows();
    let mut right = Array2::<f64>::eye(n);
    for _ in 0..MAX_SWEEPS {
        let mut rotated = false;
        for i in 0..n {
            for j in i + 1..n {
                let (a, b) = (columns.row(i), columns.row(j));
                let (aa, bb, ab) = (a.dot(&a), b.dot(&b), a.dot(&b));
                if ab == 0.0 || ab.abs() <= ORTHOGONAL * (aa * bb).sqrt() {
                    continue;
                }
                rotated = true;
                let zeta = (bb - aa) / (2.0 * ab);
                let tangent = 1f64.copysign(zeta) / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                rotate(&mut columns, (i, j), (cosine, cosine * tangent));
                rotate(&mut right, (i, j), (cosine, cosine * tangent));
            }
        }
        if !rotated {
            break;
        }
    }
    let lengths: Vec<f64> = columns.axis_iter(Axis(0)).map(|column| norm(&column)).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| lengths[b].total_cmp(&lengths[a]));
    let mut left = columns.select(Axis(0), &order);
    let values: Vec<f64> = order.iter().map(|&i| lengths[i]).collect();
    for (mut row, &value) in left.axis_iter_mut(Axis(0)).zip(&values) {
        if value > 0.0 {
            row /= value;
        }
    }
    (left, values, right.select(Axis(0), &order))
}

/// Rows `i` and `j` turned into `cosine · i - sine · j` and `sine · i + cosine · j`.
fn rotate(rows: &mut Array2<f64>, (i, j): (usize, usize), (cosine, sine): (f64, f64)) {
    let (a, b) = rows.multi_slice_mut((ndarray::s![i, ..], ndarray::s![j, ..]));
    Zip::from(a).and(b).for_each(|a, b| (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b));
}

fn norm(v: &ArrayView1<'_, f64>) -> f64 {
    v.dot(v).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 7 + j * 3) % 11) as f64 - 4.5 + (i as f64 * 0.37).sin())
    }

    fn assert_near(found: &Array2<f64>, expected: &Array2<f64>) {
        let error = (found - expected).mapv(f64::abs).into_iter().fold(0.0, f64::max);
        assert!(error < 1e-12, "{error:e}: {found} for {expected}");
    }

    #[test]
    fn qr_gives_back_the_vectors_from_an_orthonormal_basis() {
        for (n, length) in [(3, 8), (8, 8), (8, 3), (1, 5), (0, 4)] {
            let vectors = matrix(n, length);
            let (q, r) = qr(vectors.clone());
            assert_eq!((q.dim(), r.dim()), ((n.min(length), length), (n.min(length), n)));
            assert_near(&q.dot(&q.t()), &Array2::eye(n.min(length)));
            assert_near(&r.t().dot(&q), &vectors);
        }
    }

    #[test]
    fn qr_of_dependent_and_zero_vectors_is_still_a_basis() {
        let mut vectors = matrix(4, 6);
        let first = vectors.row(0).to_owned();
        vectors.row_mut(1).assign(&(&first * 2.0));
        vectors.row_mut(2).fill(0.0);
        let (q, r) = qr(vectors.clone());
        assert_near(&q.dot(&q.t()), &Array2::eye(4));
        assert_near(&r.t().dot(&q), &vectors);
    }

    #[test]
    fn svd_gives_back_the_matrix_from_ordered_values() {
        for (rows, columns) in [(5, 5), (9, 4), (4, 9), (1, 1)] {
            let m = matrix(rows, columns);
            let (u, s, v) = svd(&m);
            assert!(s.is_sorted_by(|a, b| a >= b) && s.iter().all(|&s| s >= 0.0), "{s:?}");
            let scaled = Array2::from_shape_fn(v.dim(), |(i, j)| s[i] * v[[i, j]]);
            assert_near(&u.t().dot(&scaled), &m);
            let full = Array2::eye(s.len());
            assert_near(&u.dot(&u.t()), &full);
            assert_near(&v.dot(&v.t()), &full);
        }
    }

    #[test]
    fn svd_of_a_singular_matrix_has_zeros() {
        let m = Array2::from_shape_fn((3, 3), |(i, j)| ((i + 1) * (j + 1)) as f64);
        let (_, s, _) = svd(&m);
        assert!((s[0] - 14.0).abs() < 1e-12 && s[1..].iter().all(|&s| s < 1e-14), "{s:?}");
        assert_eq!(svd(&Array2::zeros((2, 2))).1, [0.0, 0.0]);
    }

    #[test]
    fn svd_finds_small_values_to_full_precision() {
        // diag(1, 1e-12) turned on both sides.
        let (c, s) = (0.8, 0.6);
        let turn = ndarray::arr2(&[[c, -s], [s, c]]);
        let m = turn.dot(&ndarray::arr2(&[[1.0, 0.0], [0.0, 1e-12]]));
        let (_, values, _) = svd(&m);
        assert!((values[1] / 1e-12 - 1.0).abs() < 1e-12, "{values:?}");
    }
}
