//! Why a request is refused.

use crate::wording::{HEIGHT, WIDTH, Words};

/// A request does not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It is no JSON object.
    #[error("the request is no JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// A name is no field's.
    #[error("there is no field `{name}`; expected {expected}")]
    UnknownField {
        /// The name.
        name: String,
        /// The names that there are.
        expected: String,
    },
    /// A name is no input's.
    #[error("there is no input `{name}`; expected {expected}")]
    UnknownInput {
        /// The name.
        name: String,
        /// The names that there are.
        expected: String,
    },
    /// A name comes twice.
    #[error("`{name}` is given twice; expected each name once")]
    Twice {
        /// The name.
        name: String,
    },
    /// A field holds something else than it should.
    #[error("`{field}` is {found}; expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
    /// An input is something else than it should be.
    #[error("the {title} is {found}; expected {expected}")]
    Input {
        /// The input.
        title: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An input holds NaN or infinity.
    #[error("the {title} holds {number}; expected finite numbers")]
    Infinite {
        /// The input.
        title: String,
        /// The first such number.
        number: f32,
    },
    /// A part of it is not what it should be.
    #[error("{what} is {found}, expected {expected}")]
    Part {
        /// Which part of the request.
        what: &'static str,
        /// What it is.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Width or height do not divide into patches.
    #[error(
        "{width}x{height} pixels do not divide by {multiple}; the nearest size is {nearest_width}x{nearest_height}"
    )]
    FrameSize {
        /// Width asked for, in pixels.
        width: usize,
        /// Height asked for.
        height: usize,
        /// Pixels per token side.
        multiple: usize,
        /// A width that works.
        nearest_width: usize,
        /// A height that works.
        nearest_height: usize,
    },
    /// The video is larger, wider or longer than a transformer's table of positions reaches.
    #[error(
        "{what} is {found}, which takes {positions} positions; the transformer's table has {table} ({key}), enough for {largest}; set \
         `{option}` to {largest} or less{remedy}"
    )]
    Positions {
        /// Which part of the request.
        what: &'static str,
        /// What it is.
        found: usize,
        /// Positions that it takes.
        positions: usize,
        /// Positions that there are.
        table: usize,
        /// What of the model's configuration says so.
        key: &'static str,
        /// The largest value that works.
        largest: usize,
        /// The option that says it.
        option: &'static Words,
        /// Another way out, if there is one.
        remedy: &'static str,
    },
    /// The transformer has positions for one size alone.
    #[error(
        "the size is {width}x{height}, expected {sample_width}x{sample_height}: this model has learned positions for that size \
         alone; set `{WIDTH}` and `{HEIGHT}` to it, or leave both out"
    )]
    LearnedSize {
        /// Width asked for, in pixels.
        width: usize,
        /// Height asked for.
        height: usize,
        /// The width that was learned.
        sample_width: usize,
        /// The height that was learned.
        sample_height: usize,
    },
}

impl RequestError {
    pub(crate) fn part(what: &'static str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Part { what, found: found.into(), expected: expected.into() }
    }
}
