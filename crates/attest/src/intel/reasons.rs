//! Maps errors of `dcap-qvl` to refusals.
//!
//! Owns the table. The library distinguishes its errors by their text alone, so the workspace pins one exact release.
//! An error that is not in the table becomes [`Refusal::Other`]; the quote is refused all the same.

use crate::refusal::Refusal;

const PCK: &str = "the certificate of the machine's key";

/// Returns the refusal that an error of the library stands for.
pub(super) fn refusal(error: &dcap_error::Chain) -> Refusal {
    let text = error.0.as_str();
    let has = |words: &str| text.contains(words);
    let begins = |words: &str| text.starts_with(words);
    // These errors quote unsigned text, so only their first words may choose the code.
    if begins("Failed to decode TcbInfo") {
        return Refusal::TcbInfo("it is malformed, or not version 3, which is the only supported one".into());
    } else if begins("Failed to decode QeIdentity") {
        return Refusal::QeIdentity("it is malformed".into());
    } else if begins("Failed to parse certs") || begins("Too many intermediate certificates") {
        return Refusal::MalformedCollateral("a certificate chain is malformed".into());
    }
    if has("TCB status is invalid: Revoked") {
        Refusal::TcbRevoked
    } else if has("Fmspc mismatch") {
        Refusal::OtherModel
    } else if has("No matching TCB level") || has("below minimum required from TDX module") {
        Refusal::NoTcbLevel
    } else if has("TDX module") {
        Refusal::TdxModule(text.to_owned())
    } else if has("non-TDX TCB info") || has("non-SGX TCB info") {
        Refusal::TcbInfo("it is for the other platform".into())
    } else if has("CertRevoked") {
        Refusal::Revoked { what: "a certificate of the chain" }
    } else if has("CrlExpired") || has("CRL") && has("expired") {
        Refusal::StaleCrl
    } else if has("UnknownRevocationStatus") || has("CRL") || has("Crl") {
        Refusal::BadCrl(text.to_owned())
    } else if has("TCBInfo issue date is in the future") {
        Refusal::NotYetValid { what: "TCB info" }
    } else if has("TCBInfo expired") {
        Refusal::Expired { what: "TCB info" }
    } else if has("QE Identity issue date is in the future") {
        Refusal::NotYetValid { what: "the identity of the quoting enclave" }
    } else if has("QE Identity expired") {
        Refusal::Expired { what: "the identity of the quoting enclave" }
    } else if has("CaUsedAsEndEntity") || has("EndEntityUsedAsCa") {
        Refusal::Usage { what: "a certificate of the chain" }
    } else if has("CertExpired") {
        Refusal::Expired { what: "a certificate of the chain" }
    } else if has("CertNotValidYet") {
        Refusal::NotYetValid { what: "a certificate of the chain" }
    } else if has("QE report validation")
        || has("QE MRSIGNER")
        || has("QE ISVPRODID")
        || has("QE MISCSELECT")
        || has("QE ATTRIBUTES")
        || has("QE ISVSVN")
    {
        Refusal::OtherQe(text.to_owned())
    } else if has("tcb_info") || has("TCB Info") || has("TcbInfo") {
        Refusal::TcbInfo(text.to_owned())
    } else if has("QE Identity") || has("qe_identity") || has("QeIdentity") {
        Refusal::QeIdentity(text.to_owned())
    } else if has("Signature is invalid for qe_report") {
        Refusal::QeReportSignature
    } else if has("QE report hash mismatch") || has("QE auth data") {
        Refusal::QeBinding
    } else if has("ISV enclave report signature") {
        Refusal::Signature
    } else if has("InvalidSignatureForPublicKey") {
        Refusal::CertificateSignature { what: PCK }
    } else if has("UnknownIssuer") {
        Refusal::UnknownIssuer { what: PCK }
    } else if has("PCK") || has("BadDer") || has("certificate") {
        Refusal::MalformedCertificate { what: PCK, why: text.to_owned() }
    } else {
        Refusal::Other(text.to_owned())
    }
}

/// Error texts of the library, including all causes.
pub(super) mod dcap_error {
    /// The text of an error and its causes.
    pub(crate) struct Chain(pub(crate) String);

    impl Chain {
        /// Formats an error that prints its causes in its alternate form.
        pub(crate) fn of(error: &impl std::fmt::Display) -> Self {
            Self(format!("{error:#}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each phrase of a row gives the row's code alone. Text that is quoted after the first words does not.
    #[test]
    fn each_phrase_of_the_library_gives_its_code() {
        let rows: [(&str, &[&str]); 22] = [
            ("tcb-info", &["Failed to decode TcbInfo: Fmspc mismatch", "non-TDX TCB info", "non-SGX TCB info"]),
            ("qe-identity", &["Failed to decode QeIdentity: CertRevoked"]),
            ("malformed-collateral", &["Failed to parse certs: CRL", "Too many intermediate certificates: CRL"]),
            ("tcb-revoked", &["TCB status is invalid: Revoked"]),
            ("other-model", &["Fmspc mismatch"]),
            ("no-tcb-level", &["No matching TCB level", "SVN 1 below minimum required from TDX module"]),
            ("tdx-module", &["TDX module"]),
            ("revoked", &["CertRevoked"]),
            ("stale-crl", &["CrlExpired", "a CRL that has expired"]),
            ("bad-crl", &["UnknownRevocationStatus", "a CRL", "InvalidCrl"]),
            ("not-yet-valid", &["TCBInfo issue date is in the future", "QE Identity issue date is in the future"]),
            ("expired", &["TCBInfo expired", "QE Identity expired", "CertExpired"]),
            ("usage", &["CaUsedAsEndEntity", "EndEntityUsedAsCa"]),
            ("not-yet-valid", &["CertNotValidYet"]),
            ("other-qe", &["QE report validation", "QE MRSIGNER", "QE ISVPRODID", "QE MISCSELECT"]),
            ("other-qe", &["QE ATTRIBUTES", "QE ISVSVN"]),
            ("tcb-info", &["tcb_info", "TCB Info", "a TcbInfo"]),
            ("qe-identity", &["QE Identity", "qe_identity", "a QeIdentity"]),
            ("qe-report-signature", &["Signature is invalid for qe_report"]),
            ("qe-binding", &["QE report hash mismatch", "QE auth data"]),
            ("malformed-certificate", &["PCK", "BadDer", "certificate"]),
            ("refused", &["anything else", "that has expired"]),
        ];
        for (code, all) in rows {
            for words in all {
                assert_eq!(refusal(&dcap_error::Chain((*words).into())).code(), code, "{words}");
            }
        }
        assert_eq!(refusal(&dcap_error::Chain("ISV enclave report signature".into())).code(), "signature");
    }
}
