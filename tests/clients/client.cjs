// The OpenAI SDK of Node, driven by run.py: `node client.cjs talk|errors|abort BASE`. Prints what it saw as JSON.

const OpenAI = require("openai");

const [what, baseURL] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 2 });
const models = ["lines", "claude"];
const ask = (model, content, more = {}, options = {}) =>
  client.chat.completions.create({ model, messages: [{ role: "user", content }], ...more }, options);

async function talk(model) {
  const whole = await ask(model, "hi there");
  let [stream, usage] = ["", null];
  const more = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await ask(model, "!deltas 6\nin some pieces", more)) {
    stream += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  const session = { headers: { "X-Session-Id": `node-${model}` } };
  const pids = [await ask(model, "pid", {}, session), await ask(model, "pid", {}, session)];
  const [one, other] = pids.map((answer) => answer.choices[0].message.content);
  return { whole: whole.choices[0].message.content, stream, usage: usage.completion_tokens, pid: one === other };
}

async function errors() {
  const seen = [];
  const calls = [
    () => ask("none", "hi"),
    () => ask("lines", "hi", { messages: [] }),
    () => ask("lines", "!exit 3\nhi"),
    async () => {
      for await (const _ of await ask("lines", "!deltas 3\n!cut 3\nsome words", { stream: true }));
    },
  ];
  for (const call of calls) {
    try {
      await call();
      seen.push("none");
    } catch (error) {
      seen.push([error.constructor.name, error.status].filter(Boolean).join(" "));
    }
  }
  return seen;
}

// Leaves in the middle of an answer that takes twenty seconds.
async function abort(model) {
  const controller = new AbortController();
  const slow = "!deltas 200\n!pace 100ms\nso many words that it takes twenty seconds";
  let chunks = 0;
  try {
    for await (const _ of await ask(model, slow, { stream: true }, { signal: controller.signal })) {
      if (++chunks === 4) controller.abort();
    }
  } catch (error) {
    if (!(error instanceof OpenAI.APIUserAbortError)) throw error;
  }
  return chunks;
}

async function main() {
  switch (what) {
    case "talk":
      return Promise.all(models.map(talk));
    case "errors":
      return errors();
    case "abort": {
      const seen = {};
      for (const model of models) seen[model] = await abort(model);
      return seen;
    }
    default:
      throw new Error(`no ${what}`);
  }
}

main().then(
  (seen) => console.log(JSON.stringify(seen)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
