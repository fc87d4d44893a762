import { connect } from 'node:net';

/** Sends bytes as they are and resolves to everything that comes back until the server closes. */
export function rawRequest(port: number, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(text));
    let answer = '';
    socket.setEncoding('latin1');
    socket.on('data', (chunk) => {
      answer += chunk;
    });
    socket.on('end', () => resolve(answer));
    socket.on('error', reject);
  });
}

/** A GET that closes the connection afterwards, with headers as given: repeated ones stay repeated. */
export function rawGet(port: number, headers: readonly string[], path = '/'): Promise<string> {
  const lines = [`GET ${path} HTTP/1.1`, 'Host: localhost', ...headers, 'Connection: close', '', ''];
  return rawRequest(port, lines.join('\r\n'));
}

/** The answer without the one header that depends on the clock. */
export function withoutDate(answer: string): string {
  return answer.replace(/^date: .*\r\n/im, '');
}
