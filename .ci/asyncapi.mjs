// Validates docs/asyncapi.json with AsyncAPI's own parser. The first argument is the directory of its
// node_modules. Prints each problem, and exits with 1 if there is an error or a warning.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const { Parser } = require("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync("docs/asyncapi.json", "utf8"));
const names = ["error", "warning"];
const problems = diagnostics.filter(({ severity }) => severity < 2);
for (const { severity, path, message } of problems) {
  console.error(`docs/asyncapi.json: ${names[severity]}: ${path.join(".")}: ${message}`);
}
process.exit(!document || problems.length > 0 ? 1 : 0);
