// A crawler: starts a headless browser on a page; browser, zygotes and renderers are the leaves of the tree.
// `node crawler.js none|worker|node|leaf`: who runs away. Nobody closes the browser, as in the incident.
const { spawn } = require("node:child_process");
const { mkdtempSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const { tmpdir } = require("node:os");

const runaway = process.argv[2] ?? "none";
const STEP = 2 << 20; // bytes a step, a step every 20 ms: 100 MB/s

const profile = mkdtempSync(join(tmpdir(), "plimsoll-crawler-"));
const grows = `const held = []; setTimeout(() => setInterval(() => held.push(new Uint8Array(${STEP}).fill(1)), 20), 1000);`;
const page = join(profile, "page.html");
writeFileSync(page, `<!doctype html><title>a page</title><script>${runaway === "leaf" ? grows : ""}</script>
<iframe src="data:text/html,<p>a second renderer</p>"></iframe>`);

spawn(process.env.CHROMIUM ?? "chromium", [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--site-per-process", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
  `--user-data-dir=${profile}`, `file://${page}`,
], { stdio: "ignore" });

if (runaway === "node") {
  const held = [];
  setTimeout(() => setInterval(() => held.push(Buffer.alloc(STEP, 1)), 20), 2000);
} else {
  setInterval(() => {}, 60_000);
}
