// Compiles the contracts in src/ with npm's solc. This file defines the compiler settings.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

export const here = dirname(fileURLToPath(import.meta.url));
export const version = solc.version();
export const settings = {
  viaIR: true,
  optimizer: { enabled: true, runs: 1000 },
  // Newer rules would bring opcodes that some rollups do not have.
  evmVersion: "cancun",
  metadata: { bytecodeHash: "none" },
};
const selection = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences", "storageLayout", "metadata"];

// A source of ours, or a library's.
export const load = (path) => readFileSync(path.startsWith("src/") ? join(here, path) : join(here, "node_modules", path), "utf8");

// Returns all contracts in src/ by name, or only those in `wanted`. `changed` replaces the text of sources, by path.
export const compile = (changed = {}, wanted = undefined) => {
  const text = (path) => changed[path] ?? load(path);
  const paths = readdirSync(join(here, "src")).filter((name) => name.endsWith(".sol")).sort().map((name) => `src/${name}`);
  const outputs = (path) => (wanted === undefined || wanted.includes(name(path)) ? { [path]: { "*": selection } } : {});
  const name = (path) => path.slice("src/".length, -".sol".length);
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(paths.map((path) => [path, { content: text(path) }])),
    settings: { ...settings, outputSelection: Object.assign({}, ...paths.map(outputs)) },
  };
  const read = (path) => {
    try {
      return { contents: text(path) };
    } catch {
      return { error: `there is no ${path}; run: npm ci` };
    }
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: read }));
  // Warnings about our own sources are errors. The library has one known warning: its reentrancy guard uses transient
  // storage.
  const ours = (fault) => fault.severity === "error" || fault.sourceLocation?.file.startsWith("src/");
  const harmless = Object.keys(changed).length > 0 ? ["info", "warning"] : ["info"];
  const faults = (output.errors ?? []).filter((fault) => !harmless.includes(fault.severity) && ours(fault));
  if (faults.length > 0) throw new Error(faults.map((fault) => fault.formattedMessage).join("\n"));
  const made = paths.flatMap((path) => Object.entries(output.contracts[path] ?? {}).filter(([contract]) => contract === name(path)));
  // Abstract contracts have no bytecode.
  return Object.fromEntries(made.filter(([, contract]) => contract.evm.bytecode.object !== ""));
};
