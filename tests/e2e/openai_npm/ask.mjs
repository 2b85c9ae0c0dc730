// Asks one endpoint everything, with the official client, and prints what it was told as JSON:
//   node ask.mjs BASE_URL KEY MODEL PROMPT SALT
// Ids and times are left out; everything else is for the caller to compare.
import OpenAI from "openai";

const [baseURL, apiKey, model, prompt, salt] = process.argv.slice(2);
const api = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const own = { cache_salt: salt };
const messages = [{ role: "user", content: prompt }];
const common = { model, messages, temperature: 0, max_tokens: 8, ...own };
const parameters = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] }, days: { enum: [1, 2, 3] } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "trip", parameters } }];
const named = { type: "function", function: { name: "trip" } };

const paths = {};

async function kept(name, promise) {
  const { data, response } = await promise.withResponse();
  paths[name] = response.headers.get("x-baton-path");
  return data;
}

function plain({ choices, usage }) {
  return { choices: choices.map(withoutIds), usage };
}

function withoutIds(choice) {
  const calls = choice.message.tool_calls?.map((call) => call.function);
  return { ...choice, message: { ...choice.message, tool_calls: calls } };
}

const told = {};

told.chat = plain(await kept("chat", api.chat.completions.create(common)));

{
  const chunks = await kept(
    "stream",
    api.chat.completions.create({
      ...common,
      stream: true,
      stream_options: { include_usage: true },
    }),
  );
  let text = "";
  let finish = null;
  let usage = null;
  for await (const chunk of chunks) {
    text += chunk.choices[0]?.delta?.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  told.stream = { text, finish, usage };
}

told.tools = plain(
  await kept(
    "tools",
    api.chat.completions.create({ ...common, max_tokens: 60, tools, tool_choice: named }),
  ),
);

told.schema = plain(
  await kept(
    "schema",
    api.chat.completions.create({
      ...common,
      max_tokens: 60,
      response_format: {
        type: "json_schema",
        json_schema: { name: "trip", schema: parameters, strict: true },
      },
    }),
  ),
);
told.parsed = JSON.parse(told.schema.choices[0].message.content);

told.logprobs = plain(
  await kept(
    "logprobs",
    api.chat.completions.create({ ...common, logprobs: true, top_logprobs: 3 }),
  ),
);

const asked = { model, input: prompt, temperature: 0, max_output_tokens: 8, ...own };
{
  const response = await kept("response", api.responses.create(asked));
  told.response = {
    text: response.output_text,
    status: response.status,
    usage: response.usage,
  };
}
{
  const events = await kept("response stream", api.responses.create({ ...asked, stream: true }));
  const kinds = [];
  let text = "";
  for await (const event of events) {
    if (!kinds.includes(event.type)) kinds.push(event.type);
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  told["response stream"] = { text, kinds };
}

told.models = (await api.models.list()).data.map(({ id }) => id);
told.error = await api.chat.completions
  .create({ ...common, model: "nobody" })
  .catch((error) => ({ kind: error.constructor.name, status: error.status }));

console.log(JSON.stringify({ told, paths }));
