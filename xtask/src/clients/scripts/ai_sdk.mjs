// npm `ai` with `@ai-sdk/openai-compatible`.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embed, generateText, jsonSchema, streamText, tool } from "ai";
import { BASE, DESCRIPTION, EMBEDDER, KEY, MODEL, PARAMETERS, QUESTION, assert, check, isCity } from "./checks.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createOpenAICompatible({
  name: "unicorn", baseURL: `${BASE}/v1`, apiKey: KEY, supportsStructuredOutputs: true, includeUsage: true,
});
const common = { model: provider(MODEL), prompt: QUESTION, maxOutputTokens: 64, temperature: 0, maxRetries: 0 };
const tools = { get_weather: tool({ description: DESCRIPTION, inputSchema: jsonSchema(PARAMETERS) }) };

await check("chat", async () => {
  const answer = await generateText(common);
  assert(answer.text.includes("Paris") && answer.usage.outputTokens > 0, answer.text, answer.usage);
});
await check("stream", async () => {
  const result = streamText(common);
  let text = "";
  for await (const piece of result.textStream) text += piece;
  assert(text.includes("Paris") && (await result.usage).outputTokens > 0, text);
});
await check("forced_tool", async () => {
  const answer = await generateText({ ...common, tools, toolChoice: "required" });
  isCity(answer.toolCalls[0].input);
});
await check("forced_tool_streamed", async () => {
  const result = streamText({ ...common, tools, toolChoice: { type: "tool", toolName: "get_weather" } });
  isCity((await result.toolCalls)[0].input);
});
await check("structured", async () => {
  const answer = await generateText({ ...common, output: Output.object({ schema: jsonSchema(PARAMETERS) }) });
  isCity(answer.output);
});
await check("embeddings", async () => {
  if (!EMBEDDER) return "no embedder";
  const { embedding } = await embed({ model: provider.textEmbeddingModel(EMBEDDER), value: "a text" });
  assert(embedding.length > 8, embedding);
});
