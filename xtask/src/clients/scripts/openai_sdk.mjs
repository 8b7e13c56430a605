// npm `openai`.
import OpenAI from "openai";
import { BASE, DESCRIPTION, EMBEDDER, KEY, MODEL, PARAMETERS, QUESTION, assert, check, isCity } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, timeout: 120_000, maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const common = { model: MODEL, messages, max_tokens: 48, temperature: 0 };
const tool = { name: "get_weather", description: DESCRIPTION, parameters: PARAMETERS };
const tools = [{ type: "function", function: tool }];

await check("chat", async () => {
  const answer = await client.chat.completions.create(common);
  assert(answer.choices[0].message.content.includes("Paris"), answer);
});
await check("stream", async () => {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...common, stream: true })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert(text.includes("Paris"), text);
});
await check("forced_tool", async () => {
  for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
    const answer = await client.chat.completions.create({ ...common, tools, tool_choice });
    isCity(answer.choices[0].message.tool_calls[0].function.arguments);
  }
});
await check("forced_tool_streamed", async () => {
  const stream = client.chat.completions.stream({ ...common, tools, tool_choice: "required" });
  isCity((await stream.finalMessage()).tool_calls[0].function.arguments);
});
await check("structured", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "city", strict: true, schema: PARAMETERS } };
  isCity((await client.chat.completions.parse({ ...common, response_format })).choices[0].message.parsed);
});
await check("embeddings", async () => {
  if (!EMBEDDER) return "no embedder";
  const answer = await client.embeddings.create({ model: EMBEDDER, input: ["a text", "another"] });
  assert(answer.data.length === 2 && answer.data[0].embedding.length > 8, answer);
});
await check("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert(ids.includes(MODEL), ids);
});
await check("responses", async () => {
  const answer = await client.responses.create({ model: MODEL, input: QUESTION, max_output_tokens: 48, temperature: 0 });
  assert(answer.output_text.includes("Paris"), answer);
});
await check("responses_streamed", async () => {
  const stream = client.responses.stream({ model: MODEL, input: QUESTION, max_output_tokens: 48, temperature: 0 });
  assert((await stream.finalResponse()).output_text.includes("Paris"));
});
await check("responses_forced_tool", async () => {
  const answer = await client.responses.create({
    model: MODEL, input: QUESTION, max_output_tokens: 48, tool_choice: "required", tools: [{ type: "function", strict: true, ...tool }],
  });
  isCity(answer.output.find((item) => item.type === "function_call").arguments);
});
