//! Tests the official chain of ethereum/execution-apis and the answers that its tests expect.
//!
//! The files are third-party and not stored here. `OPENRELAY_EXECUTION_APIS` names the `tests` folder of a checkout
//! of that repository. Without it these tests report that they are skipped, or fail if `OPENRELAY_NO_SKIP` is set.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on must stop, and reports what it skipped"
)]

use std::path::{Path, PathBuf};

use openrelay_devchain::{Chain, Node, read_chain, read_genesis};
use serde_json::Value;

/// Folders of the methods that devchain implements.
const CLAIMED: [&str; 28] = [
    "debug_getRawBlock",
    "debug_getRawHeader",
    "debug_getRawReceipts",
    "debug_getRawTransaction",
    "eth_baseFee",
    "eth_blockNumber",
    "eth_call",
    "eth_chainId",
    "eth_estimateGas",
    "eth_feeHistory",
    "eth_getBalance",
    "eth_getBlockByHash",
    "eth_getBlockByNumber",
    "eth_getBlockReceipts",
    "eth_getBlockTransactionCountByHash",
    "eth_getBlockTransactionCountByNumber",
    "eth_getCode",
    "eth_getLogs",
    "eth_getProof",
    "eth_getStorageAt",
    "eth_getTransactionByBlockHashAndIndex",
    "eth_getTransactionByBlockNumberAndIndex",
    "eth_getTransactionByHash",
    "eth_getTransactionCount",
    "eth_getTransactionReceipt",
    "eth_sendRawTransaction",
    "eth_syncing",
    "net_version",
];

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("OPENRELAY_EXECUTION_APIS").map(PathBuf::from);
    if folder.is_none() {
        assert!(std::env::var_os("OPENRELAY_NO_SKIP").is_none(), "OPENRELAY_EXECUTION_APIS is not set");
        eprintln!("skipped: OPENRELAY_EXECUTION_APIS is not set to a checkout of ethereum/execution-apis");
    }
    folder
}

fn imported(folder: &Path) -> Chain {
    let genesis = std::fs::read_to_string(folder.join("genesis.json")).unwrap();
    let mut chain = read_genesis(&genesis).unwrap();
    read_chain(&mut chain, &std::fs::read(folder.join("chain.rlp")).unwrap()).unwrap();
    chain
}

/// An import checks the roots of every block.
#[test]
fn official_chain_is_imported_with_matching_roots() {
    let Some(folder) = folder() else { return };
    let chain = imported(&folder);
    assert!(chain.last().header.number >= 50);
    eprintln!("{} blocks", chain.last().header.number);
}

#[test]
fn answers_match_the_official_files() {
    let Some(folder) = folder() else { return };
    let chain = imported(&folder);
    let (mut judged, mut wrong) = (0, Vec::new());
    for method in CLAIMED {
        let files = std::fs::read_dir(folder.join(method)).unwrap_or_else(|error| panic!("{method}: {error}"));
        for file in files {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let speconly = text.contains("speconly:");
            // Each file is a conversation with a node that has exactly this chain.
            let mut node = Node::new(chain.clone(), false, None);
            let mut answer = Value::Null;
            for line in text.lines() {
                if let Some(request) = line.strip_prefix(">> ") {
                    answer = node.handle(&serde_json::from_str(request).unwrap());
                } else if let Some(expected) = line.strip_prefix("<< ") {
                    let expected: Value = serde_json::from_str(expected).unwrap();
                    judged += 1;
                    if !same(&expected, &answer, speconly) {
                        wrong.push(format!("{}\n  expected {expected}\n  answered {answer}", path.display()));
                    }
                }
            }
        }
    }
    eprintln!("{judged} answers checked");
    assert!(judged >= 100, "found only {judged} answers to check");
    assert!(wrong.is_empty(), "{} of {judged}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Errors must have the same code and data; messages differ between clients. Files that are marked as being about
/// form must match in form only.
fn same(expected: &Value, answer: &Value, speconly: bool) -> bool {
    let (error, own) = (&expected["error"]["code"], &answer["error"]["code"]);
    if !error.is_null() || !own.is_null() {
        return error == own && expected["error"]["data"] == answer["error"]["data"];
    }
    if speconly {
        shape(&expected["result"]) == shape(&answer["result"])
    } else {
        expected["result"] == answer["result"]
    }
}

fn shape(value: &Value) -> Value {
    match value {
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
        Value::Array(all) => all.first().map(shape).into_iter().collect(),
        Value::Null => Value::Null,
        Value::Bool(_) => "boolean".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
    }
}
