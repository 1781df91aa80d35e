/**
 * Says which public methods of the SDK no test has called: `node coverage.mjs <directory of NODE_V8_COVERAGE>`.
 *
 * What there is to call is asked of the package itself, and what was called of the engine that ran it, so that neither
 * can be a list that somebody forgot to change. Only what is left out on purpose is one, and each line of it must be
 * true: a method that does not exist, or was called after all, is as wrong there as one that is missing.
 */

import { readdirSync, readFileSync } from "node:fs";

import { Client } from "@upstash/qstash";

const WORKFLOWS = "of the workflow code in this package, which its authors have replaced by another package";
const PROVIDERS = "speaks to a provider itself and never to the relay";

const IN_DEVELOPMENT = "called by dev/app.mjs, which is confined so that nobody can watch it";

const LEFT_OUT = {
  startDevServer: IN_DEVELOPMENT,
  "nextjs registerQStashDev": IN_DEVELOPMENT,
  "Chat.createThirdParty": PROVIDERS,
  "Chat.getAuthorizationToken": PROVIDERS,
  setupAnalytics: PROVIDERS,
  formatWorkflowError: WORKFLOWS,
  "nextjs serve": WORKFLOWS,
  "nextjs servePagesRouter": WORKFLOWS,
  "h3 serve": WORKFLOWS,
  "svelte serve": WORKFLOWS,
  "solidjs serve": WORKFLOWS,
  "hono serve": WORKFLOWS,
  "cloudflare serve": WORKFLOWS,
};

/** Entrances that are left out altogether, for the same reason; "./dist/nextjs" is another name of "./nextjs". */
const LEFT_ASIDE = ["./workflow", "./dist/nextjs"];

const HOME = new URL(".", import.meta.resolve("@upstash/qstash"));
const isClass = (value) => /^class\b/.test(Function.prototype.toString.call(value));

/** Every public function by its name: of the package's entrances, of their classes, and of the parts of a client. */
async function surface() {
  const found = new Map();
  const addMethods = (owner, properties) => {
    for (const [name, { value, get }] of Object.entries(properties)) {
      const method = get ?? value;
      if (name !== "constructor" && typeof method === "function") found.set(`${owner}.${name}`, method);
    }
  };
  const { exports } = JSON.parse(readFileSync(new URL("package.json", HOME)));
  for (const entrance of Object.keys(exports).filter((name) => !LEFT_ASIDE.includes(name))) {
    const module = await import(`@upstash/qstash${entrance.slice(1)}`);
    for (const [name, value] of Object.entries(module)) {
      if (isClass(value)) addMethods(name, Object.getOwnPropertyDescriptors(value.prototype));
      else found.set(entrance === "." ? name : `${entrance.slice(2)} ${name}`, value);
    }
  }
  const client = new Client({ token: "none" });
  const accessors = Object.entries(prototypeOf(client)).filter(([, { get }]) => get);
  const parts = [...accessors.map(([name]) => client[name]), client.queue(), client.chat()];
  for (const part of parts) {
    const owner = part.constructor.name.replace(/^_/, "");
    addMethods(owner, { ...Object.getOwnPropertyDescriptors(part), ...prototypeOf(part) });
  }
  return found;
}

function prototypeOf(part) {
  return Object.getOwnPropertyDescriptors(Object.getPrototypeOf(part));
}

/** The source text of every function of the package that ran in a process which left its coverage here. */
function called(directory) {
  const texts = new Set();
  for (const file of readdirSync(directory)) {
    for (const { url, functions } of JSON.parse(readFileSync(`${directory}/${file}`)).result) {
      if (!url.startsWith(HOME)) continue;
      const source = readFileSync(new URL(url), "utf8");
      for (const { ranges } of functions) {
        const [{ startOffset, endOffset, count }] = ranges;
        if (count > 0) texts.add(source.slice(startOffset, endOffset));
      }
    }
  }
  return texts;
}

const found = await surface();
const ran = called(process.argv[2]);
const isCalled = (name) => ran.has(Function.prototype.toString.call(found.get(name)));
const problems = [
  ...[...found.keys()].filter((name) => !isCalled(name) && !(name in LEFT_OUT)).map((name) => `${name} is not called`),
  ...Object.keys(LEFT_OUT).filter((name) => !found.has(name)).map((name) => `${name} is left out, and does not exist`),
  ...Object.keys(LEFT_OUT)
    .filter((name) => found.has(name) && isCalled(name))
    .map((name) => `${name} is left out, and called`),
];
console.log(`${found.size} public functions, ${Object.keys(LEFT_OUT).length} of them left out`);
for (const problem of problems) console.log(problem);
process.exitCode = problems.length === 0 ? 0 : 1;
