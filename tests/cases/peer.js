// A mesh node without a sidecar: Node.js' own https server and client with mutual TLS, no options but the
// certificates. Arguments: address, port, certificate, key, bundle; address and port of ct110.
'use strict';
const fs = require('fs');
const https = require('https');

const [address, port, cert, key, ca, otherAddress, otherPort] = process.argv.slice(2);
const tls = { cert: fs.readFileSync(cert), key: fs.readFileSync(key), ca: fs.readFileSync(ca) };
let waiting = null;

const server = https.createServer({ ...tls, requestCert: true, rejectUnauthorized: true }, (request, response) => {
  if (request.url === '/stream') {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.write('data: 1\n\n');
    waiting = response;
    return;
  }
  if (request.url === '/release') {
    waiting.end('data: 2\n\n');
    response.end();
    return;
  }
  if (request.url === '/dial-back') {
    const options = {
      ...tls, host: otherAddress, port: otherPort, servername: 'ct110.mesh', path: '/api/mesh/ping',
      headers: { host: 'ct110.mesh' },
    };
    https.get(options, (answer) => answer.pipe(response)).on('error', (error) => response.end(String(error)));
    return;
  }
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({
      cn: request.socket.getPeerCertificate().subject.CN,
      method: request.method,
      url: request.url,
      http: request.httpVersion,
      body: Buffer.concat(chunks).toString(),
    }));
  });
});
server.listen(Number(port), address, () => console.log('listening'));
