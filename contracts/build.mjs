// Compiles the contracts and writes artifacts/, or with --check compares what it would write byte by byte.
// An artifact holds the ABI, bytecode, storage layout with structs, compiler, settings, and the SHA-256 of each source.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { compile, here, load, settings, version } from "./compile.mjs";

// Ids of the compiler's syntax tree change with files that have nothing to do with the contract.
const named = (type) => type.replace(/\)\d+(_storage)?/g, ")$1");
const places = (all) => all.map(({ label, slot, offset, type }) => ({ label, slot, offset, type: named(type) }));
const structs = (types) => Object.fromEntries(Object.entries(types ?? {}).filter(([, type]) => type.members).map(([type, { members }]) => [named(type), places(members)]).sort());
const sha256 = (text) => createHash("sha256").update(text).digest("hex");
const folder = join(here, "artifacts");
mkdirSync(folder, { recursive: true });
const check = process.argv.includes("--check");
const contracts = Object.entries(compile());
let different = 0;
for (const [contract, made] of contracts) {
  const inputs = Object.keys(JSON.parse(made.metadata).sources).sort();
  const artifact = {
    contract,
    compiler: version,
    settings,
    inputs: Object.fromEntries(inputs.map((path) => [path, sha256(load(path))])),
    abi: made.abi,
    bytecode: `0x${made.evm.bytecode.object}`,
    deployedBytecode: `0x${made.evm.deployedBytecode.object}`,
    immutables: Object.values(made.evm.deployedBytecode.immutableReferences ?? {}).flat(),
    storageLayout: places(made.storageLayout.storage),
    storageStructs: structs(made.storageLayout.types),
  };
  const text = `${JSON.stringify(artifact, null, 1)}\n`;
  const path = join(folder, `${contract}.json`);
  if (!check) {
    writeFileSync(path, text);
  } else if (!existsSync(path) || readFileSync(path, "utf8") !== text) {
    console.error(`artifacts/${contract}.json does not match the sources; run: ./x contracts`);
    different += 1;
  }
}
if (different > 0) process.exit(1);
console.log(`contracts: ${contracts.length} ${check ? "as committed" : "compiled"}, ${version}`);
