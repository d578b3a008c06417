//! The mesh's certificate authority as files, in the reference document's layout.
//!
//! ```text
//! <dir>/intermediate/ca-chain.pem      the intermediate (and its predecessors, until they end), then the root:
//!                                      what every node trusts
//! <dir>/intermediate/crl.pem           what is revoked, a list for each intermediate
//! <dir>/intermediate/intermediate.key  signs what is issued (0600); may be elsewhere (`--signing-key`)
//! <dir>/issued/<name>.crt, .key        a leaf with the intermediate behind it; its key (0600)
//! <dir>/issued/superseded/             the certificates that were renewed, until they have ended
//! <dir>/issued/index.jsonl             everything that was ever issued or revoked
//! <root-dir>/root.crt, root.key        signs intermediates; keep it off the shared folder
//! ```
//! A folder that RivetOS's `rivet-ca.sh` made is worked with as it is: `intermediate/chain.pem`, `int.key` and `int.crt`,
//! `<dir>/crl.pem`, `issued/device-<id>.crt`, and its books `index.txt` and `crlnumber`.
//!
//! Nothing is ever overwritten, except what a renewal or a revocation is there to replace. A file appears under
//! its name only when it is complete and on disk, and `ca-chain.pem` comes last, so a CA without it is one whose
//! making was interrupted. Every change holds one lock, also between hosts; one that is interrupted at any instant
//! leaves a folder that works, and the next one ends it.

mod authority;
mod certificate;
mod change;
mod digest;
mod error;
mod files;
mod index;
mod inspect;
mod issue;
mod key;
mod list;
mod lists;
mod lock;
mod make;
mod model;
mod new_request;
mod reason;
mod record;
mod request;
mod revoke;
mod rivetos;
mod root;
mod serving;

pub use certificate::{day, ends};
pub use digest::{Digest, hex, sha256};
pub use error::CaError;
pub use index::Entry;
pub use inspect::{Examined, Kind, RevokedSince, State};
pub use key::KeyType;
pub use list::Listed;
pub use make::{INTERMEDIATE_DAYS, NewIntermediate};
pub use model::{
    Bundle, CRL_DAYS, Ca, DEFAULT_DIR, DEFAULT_ROOT_DIR, Issued, LEAF_DAYS, Order, RENEW_WITHIN_DAYS,
    Renewal, Signed,
};
pub use new_request::NewRequest;
pub use reason::Reason;
pub use record::{Issuance, Origin, Revocation};
pub use request::{RequestError, SigningRequest};
pub use revoke::{Refreshed, Revoked, Which};
pub use root::{NewRoot, Retired};
pub use serving::{ENROLMENT_NAME, Serving};

#[cfg(test)]
mod tests;
