// The workgroup's place in a row of workgroups that is laid out as a grid, since some drivers take no more than 65535 in a dimension.
uint flat_group() { return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x; }
