//! Errors as etcd puts them on the wire: gRPC code and exact text
//! (etcd `api/v3rpc/rpctypes/error.go`).

use tonic::{Code, Status};

use crate::core::Error;

/// The code that etcd gives each error.
fn code(error: Error) -> Code {
    match error {
        Error::EmptyKey
        | Error::KeyNotFound
        | Error::ValueProvided
        | Error::LeaseProvided
        | Error::TooManyOps
        | Error::DuplicateKey
        | Error::InvalidSortOption
        | Error::RequestTooLarge => Code::InvalidArgument,
        Error::Compacted | Error::FutureRevision | Error::LeaseTtlTooLarge => Code::OutOfRange,
        Error::NoSpace | Error::TooManyRequests => Code::ResourceExhausted,
        Error::LeaseNotFound => Code::NotFound,
        Error::LeaseExists => Code::FailedPrecondition,
        Error::Stopped | Error::Timeout => Code::Unavailable,
        Error::Corrupt => Code::DataLoss,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(code(error), error.to_string())
    }
}
