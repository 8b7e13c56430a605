// Runs checks of a client, each on a line of its own: `ok NAME`, `FAILED NAME: why`, `NOT RUN NAME: why`.
export const [BASE, MODEL, EMBEDDER] = process.argv.slice(2);
export const KEY = "unused";
export const QUESTION = "What is the capital of France?";
export const DESCRIPTION = "Tells the weather in a city.";
export const CITIES = ["Paris", "London", "Rome"];
export const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES } },
  required: ["city"],
  additionalProperties: false,
};

export async function check(name, run) {
  try {
    console.log((await run()) === "no embedder" ? `NOT RUN ${name}: no embedding model is served` : `ok ${name}`);
  } catch (error) {
    console.log(`FAILED ${name}: ${String(error?.stack ?? error).replace(/\s+/g, " ").slice(0, 600)}`);
  }
}

export function assert(is, ...shown) {
  if (!is) throw new Error(`not so: ${JSON.stringify(shown)?.slice(0, 500)}`);
}

export function isCity(given) {
  const value = typeof given === "string" ? JSON.parse(given) : given;
  assert(Object.keys(value).length === 1 && CITIES.includes(value.city), value);
}
