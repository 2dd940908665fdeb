//! Keys in files, encrypted with a password: Web3 Secret Storage, version 3, which other Ethereum tools also read.
//!
//! Owns the file format, and where the password comes from. Source: ethereum.org, "Web3 Secret Storage Definition".

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use alloy_primitives::{Address, hex, keccak256};
use aws_lc_rs::cipher::{
    AES_128, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;
use k256::ecdsa::SigningKey;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::output::quoted;

/// The scrypt cost of new files: n = 2^17, which takes 128 MiB and about half a second for each password tried.
const LOG_N: u8 = 17;
/// The highest scrypt cost that a file may ask for: n up to 2^20, and one gibibyte of memory for n and r together.
const MAX_LOG_N: u8 = 20;
const MAX_MEMORY: u64 = 1 << 30;

/// Makes a key and writes it to `path`, encrypted. The file must not exist.
pub(crate) fn create(path: &Path, password: &[u8]) -> Result<SigningKey, Failure> {
    loop {
        let mut secret = Zeroizing::new([0; 32]);
        rand::fill(&mut *secret).map_err(Failure::plain)?;
        // One secret in 2^128 is not a valid key.
        if let Ok(key) = SigningKey::from_slice(&*secret) {
            store(path, &key, password, LOG_N)?;
            return Ok(key);
        }
    }
}

fn store(path: &Path, key: &SigningKey, password: &[u8], log_n: u8) -> Result<(), Failure> {
    let refuse = |error: &dyn std::fmt::Display| Failure::plain(format!("cannot write {}: {error}", path.display()));
    let mut salt = [0; 32];
    let mut iv = [0; 16];
    rand::fill(&mut salt).map_err(Failure::plain)?;
    rand::fill(&mut iv).map_err(Failure::plain)?;
    let derived = scrypt(password, &salt, log_n, 8, 1)?;
    let mut ciphertext = Zeroizing::new(<[u8; 32]>::from(key.to_bytes()));
    let cipher =
        UnboundCipherKey::new(&AES_128, &derived[..16]).and_then(EncryptingKey::ctr).map_err(|e| refuse(&e))?;
    cipher
        .less_safe_encrypt(&mut *ciphertext, EncryptionContext::Iv128(FixedLength::from(&iv)))
        .map_err(|error| refuse(&error))?;
    let mac = keccak256([&derived[16..], &ciphertext[..]].concat());
    let text = json!({
        "version": 3,
        "id": uuid()?,
        "address": hex::encode(Address::from_public_key(key.verifying_key())),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": hex::encode(iv)},
            "ciphertext": hex::encode(&ciphertext[..]),
            "kdf": "scrypt",
            "kdfparams": {"dklen": 32, "n": 1u64 << log_n, "r": 8, "p": 1, "salt": hex::encode(salt)},
            "mac": hex::encode(mac),
        },
    });
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| writeln!(file, "{text}").and_then(|()| file.sync_all())).map_err(|error| refuse(&error))
}

/// Returns the address of the key in the file `path`, without its password.
pub(crate) fn address(path: &Path) -> Result<Address, Failure> {
    let refuse = |why: &dyn std::fmt::Display| Failure::plain(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
    let file: Value = serde_json::from_str(&text).map_err(|error| refuse(&error))?;
    let address = file["address"].as_str().and_then(|text| format!("0x{text}").parse().ok());
    address.ok_or_else(|| refuse(&"is not a keystore"))
}

/// Reads the key in the file `path`, which must be readable by its owner only.
pub(crate) fn open(path: &Path, password: &[u8]) -> Result<SigningKey, Failure> {
    let refuse = |error: &dyn std::fmt::Display| Failure::plain(format!("{}: {error}", path.display()));
    let text = read_private(path)?;
    decrypt(&text, password).map_err(|why| refuse(&why))
}

/// Reads a file that only this user, or root, can read or change. Shells make pipes with such modes too.
fn read_private(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let refuse = |why: &dyn std::fmt::Display| Failure::plain(format!("{}: {why}", path.display()));
    let mut file = std::fs::File::open(path).map_err(|error| refuse(&error))?;
    // Of the file that is open, because its name may have meant another file a moment earlier.
    let metadata = file.metadata().map_err(|error| refuse(&error))?;
    private(path, metadata.mode() & 0o777, metadata.uid(), openrelay_sys::sandbox::user())
        .map_err(|why| refuse(&why))?;
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(|error| refuse(&error))?;
    Ok(text)
}

/// Checks mode and owner of a file that holds a secret of the user with ID `own`.
fn private(path: &Path, mode: u32, owner: u32, own: u32) -> Result<(), String> {
    if mode & 0o077 != 0 {
        return Err(format!(
            "other users may read or change this file (mode {mode:o}); run: chmod 600 {}",
            quoted(path)
        ));
    }
    if owner != own && owner != 0 {
        return Err(format!("this file belongs to user {owner}; run: chown {own} {}", quoted(path)));
    }
    Ok(())
}

fn decrypt(text: &str, password: &[u8]) -> Result<SigningKey, String> {
    let file: Value = serde_json::from_str(text).map_err(|error| format!("is not a keystore: {error}"))?;
    let crypto = &file["crypto"];
    if file["version"] != 3 || crypto["cipher"] != "aes-128-ctr" {
        return Err("is not a version 3 keystore with aes-128-ctr".into());
    }
    let bytes = |value: &Value| value.as_str().and_then(|text| hex::decode(text).ok());
    let params = &crypto["kdfparams"];
    let number = |key: &str| params[key].as_u64().ok_or_else(|| format!("kdfparams has no {key}"));
    let salt = bytes(&params["salt"]).ok_or("kdfparams has no salt")?;
    if number("dklen")? != 32 {
        return Err("dklen is not 32".into());
    }
    let derived = match crypto["kdf"].as_str() {
        Some("scrypt") => {
            let n = number("n")?;
            let log_n = u8::try_from(n.max(2).ilog2()).unwrap_or(u8::MAX);
            if !n.is_power_of_two() || log_n > MAX_LOG_N {
                return Err(format!("asks for scrypt with n = {n}; powers of two up to 2^{MAX_LOG_N} are accepted"));
            }
            let small = |key: &str| -> Result<u32, String> {
                u32::try_from(number(key)?).ok().filter(|n| (1..=64).contains(n)).ok_or(format!("{key} is not 1 to 64"))
            };
            if n.saturating_mul(128 * u64::from(small("r")?)) > MAX_MEMORY {
                return Err("asks for more than one gibibyte of memory".into());
            }
            scrypt(password, &salt, log_n, small("r")?, small("p")?).map_err(|failure| failure.to_string())?
        }
        Some("pbkdf2") if params["prf"] == "hmac-sha256" => {
            let rounds =
                u32::try_from(number("c")?).ok().and_then(std::num::NonZeroU32::new).ok_or("c is too large")?;
            let mut derived = Zeroizing::new([0; 32]);
            let algorithm = aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256;
            aws_lc_rs::pbkdf2::derive(algorithm, rounds, &salt, password, &mut *derived);
            derived
        }
        _ => return Err("has a kdf that is neither scrypt nor pbkdf2 with hmac-sha256".into()),
    };
    let mut secret = Zeroizing::new(bytes(&crypto["ciphertext"]).ok_or("has no ciphertext")?);
    let mac = keccak256([&derived[16..], &secret[..]].concat());
    if bytes(&crypto["mac"]).is_none_or(|own| *own != *mac) {
        return Err("wrong password, or the file is damaged".into());
    }
    let iv: [u8; 16] = bytes(&crypto["cipherparams"]["iv"]).and_then(|iv| iv.try_into().ok()).ok_or("has no iv")?;
    let cipher = UnboundCipherKey::new(&AES_128, &derived[..16]).and_then(DecryptingKey::ctr);
    let opened = cipher
        .and_then(|cipher| cipher.decrypt(&mut secret, DecryptionContext::Iv128(FixedLength::from(&iv))).map(|_| ()));
    opened.map_err(|_| "cannot be decrypted")?;
    // Some tools leave out leading zeros.
    let mut key = Zeroizing::new([0; 32]);
    let start = key.len().checked_sub(secret.len()).ok_or("holds more than a key")?;
    key[start..].copy_from_slice(&secret);
    let key = SigningKey::from_slice(&*key).map_err(|_| "does not hold a valid key")?;
    // The address is shown without the password, so it must be the key's own.
    let own = hex::encode(Address::from_public_key(key.verifying_key()));
    match file["address"].as_str().map(|shown| shown.trim_start_matches("0x").to_lowercase()) {
        Some(shown) if shown != own => Err(format!("states the address {shown}, but its key has the address {own}")),
        Some(_) | None => Ok(key),
    }
}

fn scrypt(password: &[u8], salt: &[u8], log_n: u8, r: u32, p: u32) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let params = scrypt::Params::new(log_n, r, p, 32).map_err(Failure::plain)?;
    let mut derived = Zeroizing::new([0; 32]);
    scrypt::scrypt(password, salt, &params, &mut *derived).map_err(Failure::plain)?;
    Ok(derived)
}

/// Returns a random UUID. Source: RFC 9562, version 4.
fn uuid() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    rand::fill(&mut bytes).map_err(Failure::plain)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    let parts: Vec<&str> = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)]
        .iter()
        .filter_map(|(from, to)| digits.get(*from..*to))
        .collect();
    Ok(parts.join("-"))
}

/// Returns the password: the first line of a file or of standard input (`-`), or what the user types.
pub(crate) fn password(file: Option<&Path>, twice: bool) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let first_line = |text: Zeroizing<String>| Zeroizing::new(text.lines().next().unwrap_or("").as_bytes().to_vec());
    let password = match file {
        Some(path) if path == Path::new("-") => {
            let mut line = Zeroizing::new(String::new());
            std::io::stdin().lock().read_line(&mut line).map_err(Failure::plain)?;
            first_line(line)
        }
        Some(path) => first_line(read_private(path)?),
        None => {
            let ask = |what: &str| {
                rpassword::prompt_password(what)
                    .map(Zeroizing::new)
                    .map_err(|error| Failure::new(2, format!("no password: {error}; use --password-file FILE")))
            };
            let typed = first_line(ask("Password of the operator's key: ")?);
            if twice && *first_line(ask("Again: ")?) != *typed {
                return Err(Failure::new(2, "the two passwords differ"));
            }
            typed
        }
    };
    if password.is_empty() {
        return Err(Failure::new(2, "the password is empty"));
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn password_file_accessible_to_others_is_refused() {
        let path = std::env::temp_dir().join(format!("openrelay-password-{}", std::process::id()));
        std::fs::write(&path, "secret\nmore\n").unwrap();
        let with_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            password(Some(&path), false)
        };
        assert_eq!(**with_mode(0o600).unwrap(), *b"secret");
        assert_eq!(**with_mode(0o400).unwrap(), *b"secret");
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644] {
            let said = with_mode(mode).unwrap_err().to_string();
            assert!(said.contains(&format!("(mode {mode:o}); run: chmod 600 ")), "{said}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(private(&path, 0o600, 1_000, 1_000), Ok(()));
        assert_eq!(private(&path, 0o600, 0, 1_000), Ok(()), "root reads everything anyway");
        assert!(private(&path, 0o600, 1_001, 1_000).unwrap_err().contains("belongs to user 1001; run: chown 1000 "));
        assert!(private(&path, 0o600, 1_001, 0).is_err(), "another user can change root's secret");
    }

    /// Source: go-ethereum, accounts/keystore/testdata/v3_test_vector.json.
    #[test]
    fn official_files_open_with_their_own_password_only() {
        let pbkdf2 = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"6087dab2f9fdbbfaddc31a909735c1e6"},
            "ciphertext":"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46","kdf":"pbkdf2",
            "kdfparams":{"c":262144,"dklen":32,"prf":"hmac-sha256",
            "salt":"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
            "mac":"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},"version":3}"#;
        let scrypt = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"e0c41130a323adc1446fc82f724bca2f"},
            "ciphertext":"9517cd5bdbe69076f9bf5057248c6c050141e970efa36ce53692d5d59a3984","kdf":"scrypt",
            "kdfparams":{"dklen":32,"n":2,"r":8,"p":1,
            "salt":"711f816911c92d649fb4c84b047915679933555030b3552c1212609b38208c63"},
            "mac":"d5e116151c6aa71470e67a7d42c9620c75c4d23229847dcc127794f0732b0db5"},"version":3}"#;
        for (file, password, secret) in [
            (pbkdf2, "testpassword", "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"),
            (scrypt, "foo", "00fa7b3db73dc7dfdf8c5fbdb796d741e4488628c41fc4febd9160a866ba0f35"),
        ] {
            assert_eq!(hex::encode(decrypt(file, password.as_bytes()).unwrap().to_bytes()), secret);
            assert!(decrypt(file, b"another").unwrap_err().contains("wrong password"));
        }
        // The last row is an official vector too. RFC 7914, section 2, does not allow its cost with r = 1, so the
        // library refuses it.
        for (from, to) in [
            ("\"n\":2", "\"n\":4294967296"),
            ("\"n\":2", "\"n\":3"),
            ("aes-128-ctr", "none"),
            ("scrypt", "argon2"),
            ("\"n\":2,\"r\":8,\"p\":1", "\"n\":262144,\"r\":1,\"p\":8"),
        ] {
            assert_ne!(scrypt.replace(from, to), scrypt);
            decrypt(&scrypt.replace(from, to), b"foo").unwrap_err();
        }
    }

    #[test]
    fn stored_key_is_private_to_its_owner_and_reads_back() {
        let path = std::env::temp_dir().join(format!("openrelay-keystore-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        store(&path, &key, b"secret", 4).unwrap();
        assert_eq!(open(&path, b"secret").unwrap(), key);
        assert!(open(&path, b"other").unwrap_err().to_string().contains("wrong password"));
        assert!(store(&path, &key, b"secret", 4).is_err(), "never overwritten");
        assert_eq!(address(&path).unwrap(), Address::from_public_key(key.verifying_key()));
        let text = std::fs::read_to_string(&path).unwrap();
        let own = hex::encode(address(&path).unwrap());
        let other = decrypt(&text.replace(&own, &"11".repeat(20)), b"secret").unwrap_err();
        assert!(other.contains("states the address"), "{other}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(open(&path, b"secret").unwrap_err().to_string().contains("chmod 600"));
        std::fs::remove_file(&path).unwrap();
    }
}
