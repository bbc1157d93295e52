// oidc-provider, a certified authorization server, as strict as it can be told to be. Prints its port when it listens.
import http from "node:http";
import Provider from "oidc-provider";

const issuer = process.argv[2]; // as clients know it, behind a proxy that speaks TLS

const provider = new Provider(issuer, {
  cookies: { keys: ["of this test"] },
  features: {
    devInteractions: { enabled: true }, // a sign-in and a consent page
    registration: { enabled: true }, // RFC 7591: a client is registered when its redirect URI is known
    revocation: { enabled: true },
    introspection: { enabled: true },
  },
  pkce: { required: () => true }, // S256 is the only method it knows
  rotateRefreshToken: true, // and a second use of one ends the whole grant
  ttl: { AccessToken: 4, RefreshToken: 600, Grant: 600, Session: 600, Interaction: 600 },
  clientDefaults: {
    grant_types: ["authorization_code", "refresh_token"],
    response_types: ["code"],
    token_endpoint_auth_method: "client_secret_basic",
  },
});
provider.proxy = true;

const serve = provider.callback();
const server = http.createServer((request, response) => {
  // A browser is sent to /_host/<name>/… where the address of a provider stands for this server.
  request.url = request.url.replace(/^\/_host\/[^/]+/, "");
  serve(request, response);
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
