// Asks the server, and reads its answer as it comes.

const BROKEN_OFF = "the answer broke off; ask again";
const BETWEEN_LOOKS = 1000; // milliseconds

export class ServerError extends Error {}

export function oneLine(text) {
  return String(text).replace(/\s+/g, " ").trim();
}

// What the server offers: model, budgets, examples.
async function readInfo() {
  const response = await send("page/info", {});
  if (!response.ok) throw new ServerError(await problem(response));
  return response.json();
}

// The same, as soon as there is a model that is loaded; what stands in the way until then is told once.
export async function waitForInfo(tell) {
  for (let told = "";;) {
    try {
      return await readInfo();
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      if (error.message !== told) tell(error);
      told = error.message;
    }
    await new Promise((done) => setTimeout(done, BETWEEN_LOOKS));
  }
}

// Chunks of an answer; ends with the last one, fails with a ServerError or, if it is stopped, an AbortError.
export async function* ask(body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await send("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new ServerError(await problem(response));
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ServerError(oneLine(chunk.error.message));
    yield chunk;
  }
  throw new ServerError(BROKEN_OFF);
}

async function send(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server cannot be reached; see whether it runs");
  }
}

// OpenAI's error object, or what a proxy sends in its place.
async function problem(response) {
  try {
    const { message } = (await response.json()).error;
    if (message) return oneLine(message);
  } catch { /* no JSON */ }
  return `the server answered ${oneLine(`${response.status} ${response.statusText}`)}; its log may say why`;
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError(BROKEN_OFF);
  }
}

// Data of server-sent events, whatever the pieces are that they come in.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (text + value).split("\n");
      text = lines.pop();
      for (const line of lines.map((whole) => whole.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw error instanceof ServerError ? error : new ServerError(BROKEN_OFF);
  } finally {
    reader.cancel().catch(() => {});
  }
}
