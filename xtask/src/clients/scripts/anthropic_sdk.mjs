// npm `@anthropic-ai/sdk`.
import Anthropic from "@anthropic-ai/sdk";
import { BASE, DESCRIPTION, KEY, MODEL, PARAMETERS, QUESTION, assert, check, isCity } from "./checks.mjs";

const client = new Anthropic({ baseURL: BASE, apiKey: KEY, timeout: 120_000, maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const common = { model: MODEL, messages, max_tokens: 48, temperature: 0 };
const tools = [{ name: "get_weather", description: DESCRIPTION, input_schema: PARAMETERS }];

await check("chat", async () => {
  const answer = await client.messages.create(common);
  assert(answer.content[0].text.includes("Paris") && answer.stop_reason === "end_turn", answer);
});
await check("stream", async () => {
  const message = await client.messages.stream(common).finalMessage();
  assert(message.content[0].text.includes("Paris") && message.usage.output_tokens > 0, message);
});
await check("forced_tool", async () => {
  const answer = await client.messages.create({ ...common, tools, tool_choice: { type: "any" } });
  isCity(answer.content.find((block) => block.type === "tool_use").input);
});
await check("forced_tool_streamed", async () => {
  const stream = client.messages.stream({ ...common, tools, tool_choice: { type: "tool", name: "get_weather" } });
  isCity((await stream.finalMessage()).content.find((block) => block.type === "tool_use").input);
});
await check("count_tokens", async () => {
  const counted = await client.messages.countTokens({ model: MODEL, messages });
  const { usage } = await client.messages.create({ ...common, max_tokens: 1 });
  const used = usage.input_tokens + (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
  assert(counted.input_tokens === used, counted, usage);
});
