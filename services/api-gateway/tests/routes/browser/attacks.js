// What a page tries on another origin. Each attempt returns what it achieved, or `refused`.
const REFUSED = "refused";
const refused = () => REFUSED;

// Resolves with the first of these events.
const first = (target, ...names) =>
  new Promise((resolve) => names.forEach((name) => target.addEventListener(name, resolve, { once: true })));

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const fetched = (address, options) => fetch(address, options).then((answer) => answer.text()).then(
  (text) => text === "" ? REFUSED : text,
  refused,
);

// Loads an element of this page.
const load = async (name, attributes) => {
  const element = Object.assign(document.createElement(name), attributes);
  const event = first(element, "load", "error");
  document.body.append(element);
  return (await event).type === "load" ? "loaded" : REFUSED;
};

// Shows an address in a frame. A page that is shown sends a message before it is loaded.
const framed = async (address) => {
  const frame = document.createElement("iframe");
  let shown = false;
  const note = (event) => { shown ||= event.source === frame.contentWindow; };
  addEventListener("message", note);
  const event = first(frame, "load");
  frame.src = address;
  document.body.append(frame);
  await event;
  // The message of a frame in another process may arrive after the frame is loaded.
  await pause(200);
  removeEventListener("message", note);
  return shown ? "shown" : REFUSED;
};

// Sends a form into a frame, so that this page stays.
const posted = async (address) => {
  const frame = Object.assign(document.createElement("iframe"), { name: "posted" });
  document.body.append(frame);
  const form = Object.assign(document.createElement("form"), { action: address, method: "post", target: "posted" });
  document.body.append(form);
  const event = first(frame, "load");
  form.submit();
  await event;
  try { return frame.contentDocument.body.textContent; } catch { return REFUSED; }
};

const socket = async (address, protocols = []) => {
  const opened = await first(new WebSocket(address.replace("http:", "ws:"), protocols), "open", "error");
  return opened.type === "open" ? "open" : REFUSED;
};

const events = async (address) => {
  const source = new EventSource(address, { withCredentials: true });
  const opened = await first(source, "open", "error");
  source.close();
  return opened.type === "open" ? "open" : REFUSED;
};

// Visits an address in a window of its own, and reads what it shows.
const visited = async (address) => {
  const other = open(address);
  const until = Date.now() + 10_000;
  while (Date.now() < until) {
    try {
      if (other.location.href === address && other.document.readyState === "complete") break;
    } catch {
      other.close();
      return REFUSED;
    }
    await pause(50);
  }
  return other.document.documentElement.textContent;
};

const worker = (script, options) =>
  navigator.serviceWorker.register(script, options).then(() => "registered", refused);

// The attempts on the preview of another box.
const onPreview = async (origin) => ({
  "fetch": await fetched(`${origin}/stolen-fetch`, { credentials: "include" }),
  "fetch without CORS": await fetched(`${origin}/stolen-no-cors`, { mode: "no-cors", credentials: "include" }),
  "post": await fetched(`${origin}/stolen-post`, { method: "POST", mode: "no-cors", credentials: "include", body: "a" }),
  "script": await load("script", { src: `${origin}/script.js` }),
  "picture": await load("img", { src: `${origin}/picture.svg` }),
  "form": await posted(`${origin}/stolen-form`),
  "frame": await framed(`${origin}/framed`),
  "WebSocket": await socket(`${origin}/live`),
  "events": await events(`${origin}/events`),
  "window": await visited(`${origin}/headers?visited`),
  "service worker": await worker(`${origin}/script.js`),
  "scope": await worker("/script.js", { scope: `${origin}/` }),
});

// The attempts on the API, with a token.
const onApi = async (api, environment, token) => {
  const headers = { Authorization: `Bearer ${token}` };
  return {
    "fetch": await fetched(`${api}/health`, { credentials: "include" }),
    "fetch without CORS": await fetched(`${api}/health`, { mode: "no-cors" }),
    "fetch with the token": await fetched(`${api}/environments/${environment}`, { headers }),
    "port": await fetched(`${api}/environments/${environment}/ports/8000/headers`, { headers }),
    "frame": await framed(`${api}/health`),
    "WebSocket": await socket(`${api}/environments/${environment}/attach?command=true`, ["Authorization", token]),
    "service worker": await worker(`${api}/environments/${environment}/ports/8000/script.js`),
  };
};
