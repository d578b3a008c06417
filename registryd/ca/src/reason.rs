//! Why certificates are revoked.

use rcgen::RevocationReason;
use serde::{Deserialize, Serialize};

/// Why a certificate is revoked (RFC 5280, section 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// No reason is given
    #[default]
    Unspecified,
    /// Somebody else has, or may have, its private key
    KeyCompromise,
    /// The same, of a CA
    #[value(skip)]
    CaCompromise,
    /// Its owner's name or place has changed
    AffiliationChanged,
    /// A new one has taken its place
    Superseded,
    /// It is no longer needed: the host or agent is gone
    CessationOfOperation,
    /// For the time being
    #[value(skip)]
    CertificateHold,
    /// Not any more
    #[value(skip)]
    RemoveFromCrl,
    /// Its owner may no longer take part
    PrivilegeWithdrawn,
    /// Of an attribute authority
    #[value(skip)]
    AaCompromise,
}

impl Reason {
    const ALL: [(Self, RevocationReason); 9] = [
        (Self::KeyCompromise, RevocationReason::KeyCompromise),
        (Self::CaCompromise, RevocationReason::CaCompromise),
        (Self::AffiliationChanged, RevocationReason::AffiliationChanged),
        (Self::Superseded, RevocationReason::Superseded),
        (Self::CessationOfOperation, RevocationReason::CessationOfOperation),
        (Self::CertificateHold, RevocationReason::CertificateHold),
        (Self::RemoveFromCrl, RevocationReason::RemoveFromCrl),
        (Self::PrivilegeWithdrawn, RevocationReason::PrivilegeWithdrawn),
        (Self::AaCompromise, RevocationReason::AaCompromise),
    ];

    /// As lists have it; the standard wants an unspecified one left out.
    pub(crate) fn code(self) -> Option<RevocationReason> {
        Self::ALL.iter().find(|(reason, _)| *reason == self).map(|(_, code)| *code)
    }

    pub(crate) fn of_code(code: u8) -> Self {
        Self::ALL
            .iter()
            .find(|(_, known)| *known as u8 == code)
            .map(|(reason, _)| *reason)
            .unwrap_or_default()
    }

    /// The words shown to people, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::CaCompromise => "ca-compromise",
            Self::AffiliationChanged => "affiliation-changed",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation-of-operation",
            Self::CertificateHold => "certificate-hold",
            Self::RemoveFromCrl => "remove-from-crl",
            Self::PrivilegeWithdrawn => "privilege-withdrawn",
            Self::AaCompromise => "aa-compromise",
        }
    }
}
