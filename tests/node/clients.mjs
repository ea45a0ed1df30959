// Runs the openai and LangChain packages of npm against a server; prints one JSON object.
import { OpenAIEmbeddings } from "@langchain/openai";
import OpenAI from "openai";

const baseURL = process.argv[2];
const client = new OpenAI({ baseURL, apiKey: "sk-none", maxRetries: 0 });
const model = "text-embedding-3-small";
const texts = ["The cat sat on the mat.", "Ein zweiter Text."];

const standard = await client.embeddings.create({ model, input: texts });
const float = await client.embeddings.create({ model, input: texts, encoding_format: "float" });
const short = await client.embeddings.create({ model, input: texts[0], dimensions: 64 });
const models = [];
for await (const listed of client.models.list()) models.push(listed.id);
const refusal = await client.embeddings
  .create({ model: "no-such-model", input: "x" })
  .catch((error) => ({ kind: error.constructor.name, status: error.status, code: error.code }));
const langchain = new OpenAIEmbeddings({ model, apiKey: "sk-none", configuration: { baseURL } });

console.log(
  JSON.stringify({
    standard: standard.data.map((item) => Array.from(item.embedding)),
    float: float.data.map((item) => item.embedding),
    usage: standard.usage,
    short: Array.from(short.data[0].embedding),
    models,
    refusal,
    langchain: await langchain.embedDocuments(texts),
  }),
);
