// Bundle the page's scripts into dist/chat.js. Cipher suite 1 needs only WebCrypto and @hpke/core: what ts-mls would
// load for other suites is left out.

import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

const leaveOut = {
  name: "leave-out",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^@noble\/|^@hpke\/(chacha20poly1305|hybridkem-x-wing|dhkem-x448|ml-kem)$/ }, ({ path }) => ({ path, namespace: "left-out" }));
    onLoad({ filter: /.*/, namespace: "left-out" }, () => ({ contents: "module.exports = {}", loader: "js" }));
  },
};

await build({
  entryPoints: [here("src/main.ts")],
  outfile: here("dist/chat.js"),
  alias: { "mimids-client": here("../../clients/typescript/src/index.ts") },
  nodePaths: [here("node_modules")],
  plugins: [leaveOut],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  logLevel: "warning",
});
