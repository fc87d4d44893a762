/** A verifier of your own: sessions of a table, in the same chain as API keys, behind the same identity. */
import express from 'express';
import { AccessError, authenticate, requireScope, type Verifier } from 'tollkeeper';

interface Session {
  readonly userId: string;
  readonly scopes: readonly string[];
  readonly endsAt: number;
}

/** Where sessions live. Here a map; a database would be asked in `verify`, with the signal. */
export const sessions = new Map<string, Session>();

export const sessionVerifier: Verifier = {
  name: 'session',
  // Is this credential mine? Synchronous, without I/O.
  accepts: ({ token }) => token?.startsWith('sess_') === true,
  async verify({ token }) {
    const session = sessions.get(token as string);
    if (session === undefined) throw new AccessError('invalid_token', { reason: 'no such session' });
    return {
      identity: {
        subject: { kind: 'user', id: session.userId },
        authId: session.userId,
        scopes: session.scopes,
        expiresAt: session.endsAt,
      },
      // A session may end early: it is looked up again after this long.
      cacheSeconds: 5,
    };
  },
};

export const app = express();
app.get('/profile', authenticate({ verifiers: [sessionVerifier] }), requireScope('profile:read'), (req, res) => {
  res.json({ id: req.identity?.subject.id });
});
