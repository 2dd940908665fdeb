// Compiles the contracts with npm's solc and writes artifacts/, or with --check compares what it would write byte by byte.
// An artifact holds ABI, bytecode, storage layout, compiler, settings, and the SHA-256 of every source that went in.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const here = dirname(fileURLToPath(import.meta.url));
const names = readdirSync(join(here, "src")).filter((name) => name.endsWith(".sol")).sort();
const settings = {
  viaIR: true,
  optimizer: { enabled: true, runs: 1000 },
  // Newer rules would bring opcodes that some rollups do not have.
  evmVersion: "cancun",
  metadata: { bytecodeHash: "none" },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences", "storageLayout", "metadata"] } },
};
const sources = {};
const load = (path) => readFileSync(path.startsWith("src/") ? join(here, path) : join(here, "node_modules", path), "utf8");
for (const name of names) sources[`src/${name}`] = { content: load(`src/${name}`) };
const read = (path) => {
  try {
    return { contents: load(path) };
  } catch {
    return { error: `there is no ${path}; run: npm ci` };
  }
};
const output = JSON.parse(solc.compile(JSON.stringify({ language: "Solidity", sources, settings }), { import: read }));
// A warning about our own sources is a fault; of the library's we know one, that its reentrancy guard uses transient storage.
const ours = (fault) => fault.severity === "error" || fault.sourceLocation?.file.startsWith("src/");
const faults = (output.errors ?? []).filter((fault) => fault.severity !== "info" && ours(fault));
if (faults.length > 0) {
  for (const fault of faults) console.error(fault.formattedMessage);
  process.exit(1);
}
// Ids of the compiler's syntax tree change with files that have nothing to do with the contract.
const layout = ({ storage }) => storage.map(({ label, slot, offset, type }) => ({ label, slot, offset, type: type.replace(/\)\d+(_storage)?/g, ")$1") }));
const sha256 = (text) => createHash("sha256").update(text).digest("hex");
const folder = join(here, "artifacts");
mkdirSync(folder, { recursive: true });
let different = 0;
for (const name of names) {
  const contract = name.replace(/\.sol$/, "");
  const made = output.contracts[`src/${name}`][contract];
  const inputs = Object.keys(JSON.parse(made.metadata).sources).sort();
  const artifact = {
    contract,
    compiler: solc.version(),
    settings: { viaIR: settings.viaIR, optimizer: settings.optimizer, evmVersion: settings.evmVersion, metadata: settings.metadata },
    inputs: Object.fromEntries(inputs.map((path) => [path, sha256(load(path))])),
    abi: made.abi,
    bytecode: `0x${made.evm.bytecode.object}`,
    deployedBytecode: `0x${made.evm.deployedBytecode.object}`,
    immutables: Object.values(made.evm.deployedBytecode.immutableReferences ?? {}).flat(),
    storageLayout: layout(made.storageLayout),
  };
  const text = `${JSON.stringify(artifact, null, 1)}\n`;
  const path = join(folder, `${contract}.json`);
  if (process.argv.includes("--check")) {
    if (!existsSync(path) || readFileSync(path, "utf8") !== text) {
      console.error(`artifacts/${contract}.json is not what the sources give; run: ./x contracts`);
      different += 1;
    }
  } else {
    writeFileSync(path, text);
  }
}
if (different > 0) process.exit(1);
console.log(`contracts: ${names.length} ${process.argv.includes("--check") ? "as committed" : "compiled"}, ${solc.version()}`);
