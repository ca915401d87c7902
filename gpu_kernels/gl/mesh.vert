#version 330 core
// One vertex to clip space, and what its triangles interpolate.
in vec3 position;
in vec3 normal;
#ifdef TEXTURED
in vec2 texture_coordinate;
out vec2 uv;
#endif
#ifdef COLOURS
in vec4 vertex_colour;
out vec4 colour;
#endif
out vec3 point;
out vec3 surface_normal;

uniform vec3 eye, right, up, forward;
uniform float scale;  // cotangent of half the field of view
uniform float near;

vec3 unit(vec3 v) {
    float squared = dot(v, v);
    return squared > 1e-30 ? v * inversesqrt(squared) : vec3(0.0);
}

void main() {
    vec3 ray = position - eye;
    float depth = dot(ray, forward);
    // Perspective with an infinite far plane.
    gl_Position = vec4(scale * dot(ray, right), scale * dot(ray, up), depth - 2.0 * near, depth);
    point = position;
    surface_normal = unit(normal);
#ifdef TEXTURED
    uv = texture_coordinate;
#endif
#ifdef COLOURS
    colour = vertex_colour;
#endif
}
