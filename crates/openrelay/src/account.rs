//! The account of an operator or a validator: a folder with the chain file and an encrypted key.
//!
//! Owns how the folder is made, how its key sends transactions, and how it pays a bond. The rest of the folder is its
//! owner's, as is the plan that `init` writes.

use std::path::{Path, PathBuf};

use alloy_primitives::{Address, U256};
use alloy_sol_types::SolCall;
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::Sender;
use openrelay_chain::registry::Token;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::config::read_bytes;
use openrelay_node::directory::replace;
use serde_json::json;

use crate::failure::Failure;
use crate::keystore;
use crate::rpc::{ask, faucet};
use crate::units::Unit;

pub(crate) const CHAIN: &str = "chain.toml";
/// The most ether that a start or a round costs, in wei: one hundredth of an ether.
pub(crate) const GAS_FUNDS: U256 = U256::from_limbs([10_000_000_000_000_000, 0, 0, 0]);

/// A folder that was opened.
pub(crate) struct Account {
    pub(crate) path: PathBuf,
    pub(crate) chain: ChainFile,
    /// The name of the file with the key.
    key: &'static str,
}

impl Account {
    /// Opens the folder `path`, whose key is in the file `key`.
    pub(crate) fn open(path: &Path, key: &'static str) -> Result<Self, Failure> {
        let chain = ChainFile::load(&path.join(CHAIN)).map_err(Failure::plain)?;
        Ok(Self { path: path.to_owned(), chain, key })
    }

    /// Returns the account of a folder that does not exist yet. [`Account::create`] makes it.
    ///
    /// # Errors
    /// [`Failure`] if the folder has a key already, or if the chain file is malformed.
    pub(crate) fn planned(path: &Path, chain: &Path, key: &'static str) -> Result<Self, Failure> {
        let chain = ChainFile::load(chain).map_err(Failure::plain)?;
        if path.join(key).exists() {
            return Err(Failure::plain(format!("{} already exists; nothing was changed", path.join(key).display())));
        }
        Ok(Self { path: path.to_owned(), chain, key })
    }

    /// Makes the folder with a copy of the chain file `chain`, the plan `text` in the file `plan`, and a new key.
    /// Returns the key's address.
    pub(crate) fn create(
        &self,
        chain: &Path,
        (plan, text): (&str, &str),
        password_file: Option<&Path>,
    ) -> Result<Address, Failure> {
        let password = keystore::password(password_file, true)?;
        std::fs::create_dir_all(&self.path)
            .map_err(|error| Failure::plain(format!("cannot create {}: {error}", self.path.display())))?;
        self.write(CHAIN, &read_bytes(chain).map_err(Failure::plain)?)?;
        self.write(plan, text.as_bytes())?;
        let key = keystore::create(&self.path.join(self.key), &password)?;
        Ok(Address::from_public_key(key.verifying_key()))
    }

    /// Replaces a file of the folder.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.path.join(name);
        replace(&path, bytes).map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))
    }

    /// Returns the address of the key, without its password.
    pub(crate) fn address(&self) -> Result<Address, Failure> {
        keystore::address(&self.path.join(self.key))
    }

    pub(crate) fn signing_key(&self, password_file: Option<&Path>) -> Result<SigningKey, Failure> {
        keystore::open(&self.path.join(self.key), &keystore::password(password_file, false)?)
    }

    pub(crate) fn sender(&self, password_file: Option<&Path>) -> Result<Sender, Failure> {
        Ok(self.sender_of(self.signing_key(password_file)?))
    }

    /// Returns the sender of a key that was opened before.
    pub(crate) fn sender_of(&self, key: SigningKey) -> Sender {
        Sender::new(&self.chain, key, &self.path)
    }

    /// Returns the first endpoint, whose answers are not proven.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.chain.endpoints.first().map_or("", String::as_str))
    }

    /// Calls a contract through the first endpoint, without a proof.
    pub(crate) fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, Failure> {
        ask(&self.endpoint(), to, call)
    }

    /// Returns the ether of an account, in wei.
    pub(crate) fn ether_of(&self, account: Address) -> Result<U256, Failure> {
        Ok(self.endpoint().ask_number("eth_getBalance", &json!([account.to_string(), "latest"]))?)
    }

    /// Makes sure that the sender has a bond, and that `contract` may take it. On a development chain the faucet pays
    /// what is missing.
    pub(crate) fn approve_bond(
        &self,
        sender: &Sender,
        (token, contract): (Address, Address),
        needed: U256,
    ) -> Result<(), Failure> {
        let account = sender.address();
        let has = || self.ask(token, &Token::balanceOfCall { account });
        if has()? < needed {
            faucet(&self.chain, sender.endpoint(), account, token, needed)?;
        }
        let balance = has()?;
        if balance < needed {
            let unit = Unit::of(sender.endpoint(), token);
            let (balance, needed) = (unit.show(balance), unit.show(needed));
            let said = format!("the bond is {needed}, but {account} has {balance} ({token}); send it the rest");
            return Err(Failure::plain(said));
        }
        let allowed = Token::allowanceCall { owner: account, spender: contract };
        if self.ask(token, &allowed)? < needed {
            let approve = Token::approveCall { spender: contract, value: needed };
            sender.send("approve the bond", token, &approve.abi_encode())?;
        }
        Ok(())
    }
}
