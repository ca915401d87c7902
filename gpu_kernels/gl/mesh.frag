#version 330 core
// Light that leaves a surface towards the eye: spec/rendering.md "Meshes", rules 3 to 9 (numbers in the comments).
// What the mesh has is #defined: BASE, SURFACE, NORMAL, OCCLUSION, EMISSIVE textures (any: TEXTURED), COLOURS.
in vec3 point;
in vec3 surface_normal;
#ifdef TEXTURED
in vec2 uv;
#endif
#ifdef COLOURS
in vec4 colour;
#endif
out vec4 picture;

uniform vec3 eye, light;
uniform vec4 base_factor;
uniform float metallic_factor, roughness_factor;
uniform vec3 emission;  // emissive factor, squared (6)
#ifdef BASE
uniform sampler2D base_texture;
#endif
#ifdef SURFACE
uniform sampler2D surface_texture;
#endif
#ifdef NORMAL
uniform sampler2D normal_texture;
#endif
#ifdef OCCLUSION
uniform sampler2D occlusion_texture;
#endif
#ifdef EMISSIVE
uniform sampler2D emissive_texture;
#endif

const float PI = 3.141592653589793;

vec3 unit(vec3 v) {
    float squared = dot(v, v);
    return squared > 1e-30 ? v * inversesqrt(squared) : vec3(0.0);
}

// sRGB, exact piecewise curve; on filtered values (5).
vec3 linear(vec3 encoded) {
    return mix(encoded / 12.92, pow((encoded + 0.055) / 1.055, vec3(2.4)), step(vec3(0.04045), encoded));
}

float shadowing(float cosine, float k) {
    return cosine / (cosine * (1.0 - k) + k);
}

void main() {
    vec4 base = base_factor;
    float metallic = metallic_factor, roughness = roughness_factor, occlusion = 1.0;
    vec3 glow = emission, n = unit(surface_normal);
#ifdef BASE
    vec4 texel = texture(base_texture, uv);
    base *= vec4(linear(texel.rgb), texel.a);
#endif
#ifdef SURFACE
    roughness *= texture(surface_texture, uv).g;
    metallic *= texture(surface_texture, uv).b;
#endif
#ifdef OCCLUSION
    occlusion = texture(occlusion_texture, uv).r;
#endif
#ifdef EMISSIVE
    glow *= linear(texture(emissive_texture, uv).rgb);
#endif
#ifdef NORMAL
    // dP/du by Cramer's rule from the screen's derivatives; only its direction matters (5).
    vec2 uv_x = dFdx(uv), uv_y = dFdy(uv);
    vec3 tangent = (uv_y.t * dFdx(point) - uv_x.t * dFdy(point)) * sign(uv_x.s * uv_y.t - uv_y.s * uv_x.t);
    tangent = unit(tangent - n * dot(n, tangent));
    if (tangent != vec3(0.0)) {
        vec3 mapped = 2.0 * texture(normal_texture, uv).rgb - 1.0;
        vec3 bent = mat3(tangent, cross(n, tangent), n) * mapped;
        n = dot(bent, bent) > 1e-30 ? unit(bent) : n;
    }
#endif
    vec3 v = normalize(eye - point), h = normalize(light + v);
    float rho = clamp(roughness, 0.04, 1.0);
    float nl = clamp(dot(n, light), 0.001, 1.0), nv = clamp(abs(dot(n, v)), 0.001, 1.0);
    float nh = clamp(dot(n, h), 0.0, 1.0), vh = clamp(dot(v, h), 0.0, 1.0);
    vec3 f0 = mix(vec3(0.04), base.rgb, metallic), diffuse = 0.96 * base.rgb * (1.0 - metallic);
    vec3 fresnel = f0 + (1.0 - f0) * pow(1.0 - vh, 5.0);
    float k = (rho + 1.0) * (rho + 1.0) / 8.0, a2 = rho * rho * rho * rho;
    float spread = nh * nh * (a2 - 1.0) + 1.0;
    float specular = shadowing(nv, k) * shadowing(nl, k) * a2 / (PI * spread * spread * (4.0 * nl * nv + 0.001));
    vec3 c = 6.0 * nl * ((1.0 - fresnel) * diffuse / PI + fresnel * specular) + 0.3 * base.rgb;
    c = c * occlusion + glow;
    float alpha = base.a;
#ifdef COLOURS
    c *= colour.rgb;
    alpha *= colour.a;
#endif
    picture = clamp(vec4(pow(c, vec3(1.0 / 2.2)), alpha), 0.0, 1.0);
}
