import express from 'express';
import { protectedResourceMetadata } from 'tollkeeper';
import { protectedResourceMetadata as sameOfIssuer } from 'tollkeeper/issuer';
import { describe, expect, it } from 'vitest';
import { serve } from '../support/index.js';

const OPTIONS = { resource: 'https://api.example.com', authorizationServers: ['https://issuer.example.com'] };
const WELL_KNOWN = '/.well-known/oauth-protected-resource';

describe('protectedResourceMetadata', () => {
  it('answers at the well-known path of RFC 9728, and lets everything else go on', async () => {
    const app = express();
    app.use(protectedResourceMetadata({ ...OPTIONS, scopes: ['a:read'] }));
    app.get('/other', (_req, res) => {
      res.send('other');
    });
    const { url, close } = await serve(app);
    const response = await fetch(`${url}${WELL_KNOWN}`);
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toBe('application/json');
    expect(response.headers.get('cache-control')).toBe('public, max-age=300');
    expect(await response.json()).toEqual({
      resource: 'https://api.example.com',
      authorization_servers: ['https://issuer.example.com'],
      scopes_supported: ['a:read'],
      bearer_methods_supported: ['header'],
    });
    expect(await (await fetch(`${url}/other`)).text()).toBe('other');
    const post = await fetch(`${url}${WELL_KNOWN}`, { method: 'POST' });
    expect(post.status).toBe(405);
    expect(post.headers.get('allow')).toBe('GET, HEAD');
    await close();
  });

  it('appends the path of the resource, also under a mount path', async () => {
    const handler = sameOfIssuer({ ...OPTIONS, resource: 'https://api.example.com/v1' });
    const app = express();
    app.use(WELL_KNOWN, handler);
    const { url, close } = await serve(app);
    const response = await fetch(`${url}${WELL_KNOWN}/v1`);
    expect(await response.json()).not.toHaveProperty('scopes_supported');
    expect((await fetch(`${url}${WELL_KNOWN}`)).status).toBe(404);
    await close();
  });

  it.each([
    [{ resource: 'api' }, 'resource must be'],
    [{ resource: 'https://a.example#b' }, 'resource must be'],
    [{ resource: 'urn:a' }, 'resource must be'],
    [{ authorizationServers: [] }, 'authorizationServers must be'],
    [{ authorizationServers: 'https://a.example' }, 'authorizationServers must be'],
    [{ scopes: 'a' }, 'scopes must be'],
    [{ scope: [] }, 'did you mean "scopes"'],
  ])('refuses %j', (change, problem) => {
    expect(() => protectedResourceMetadata({ ...OPTIONS, ...change } as never)).toThrow(problem);
  });
});
